"""What a bundle depends on: recorded in its manifest, and compared before an export is done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter.errors import UserError
from exporter.options import ExportOptions
from exporter.precision import PRECISIONS, Precision, precision
from exporter.targets.tensorrt_flavor import FLAVORS
from exporter.versions import tool_versions

ELSEWHERE = ("variant", "precision", "out", "force")
"""Options that say where a bundle goes, or that the manifest holds by their content."""
KEYS = ("precision", "options", "tools")
"""Entries of the manifest that, with the checkpoint's content, determine a bundle."""
NEUTRAL_TOOLS = ("python",)
"""Tools whose version does not change a bundle."""


def wanted_row(options: ExportOptions) -> Precision:
    """The row that the options ask for, with the compute dtype of ``--compute``.

    Raises:
        UserError: no such precision, or options that mean nothing in it.
    """
    row = precision(options.precision)
    if options.observer is not None and not row.quantize_activations:
        rows = ", ".join(other.name for other in PRECISIONS if other.quantize_activations)
        raise UserError(
            f"--observer {options.observer} chooses ranges of rounded activations, and {row.name} rounds none; "
            f"leave it out, or export in {rows}."
        )
    if options.count_ties and not row.quantized:
        raise UserError(f"--count-ties is for quantized precisions, and {row.name} quantizes nothing; leave it out.")
    row = replace(row.computing(_compute(options, row)), count_ties=options.count_ties)
    if options.require_speedup and row.quantized and row.compute != "float":
        raise UserError(
            f"--require-speedup times the bundle on this machine's CPU, where {row.compute} has no kernels; "
            "leave it out, or add --compute fp32."
        )
    return row


def _compute(options: ExportOptions, row: Precision) -> str:
    """ONNX name of the compute dtype."""
    if options.compute == "auto":
        engines = bool(options.target) and all(target in FLAVORS for target in options.target)
        return "float16" if row.quantized and engines else row.compute
    wanted = {"fp32": "float", "fp16": "float16"}[options.compute]
    if not row.quantized and wanted != row.compute:
        raise UserError(
            f"--compute {options.compute} is for quantized precisions, and {row.name} quantizes nothing; "
            f"leave it out, or use --precision {options.compute}."
        )
    return wanted


def recorded_options(options: ExportOptions) -> dict[str, Any]:
    """The options a bundle was made with, JSON-able; calibration texts by their hash."""
    kept = {name: value for name, value in options.to_dict().items() if name not in ELSEWHERE}
    plain: dict[str, Any] = json.loads(json.dumps({**kept, "calibration": _digest(options.calibration)}))
    return plain


def _digest(calibration: Any) -> str | None:
    """Hash of a file's bytes, or of examples; unreadable files are left to the export, which names them."""
    if calibration is None:
        return None
    try:
        data = Path(calibration).read_bytes() if isinstance(calibration, str) else repr(calibration).encode()
    except OSError:
        return "unreadable"
    return hashlib.sha256(data).hexdigest()


def content(revision: str | None, content_key: str | None) -> str | None:
    """What tells a checkpoint: its commit on the hub, where its files' times differ from machine to machine."""
    return f"commit {revision}" if revision else content_key


def wanted_inputs(options: ExportOptions, checkpoint_content: str | None) -> dict[str, Any]:
    """The inputs an export would have now; ``checkpoint_content`` as ``content`` gives it."""
    facts = {"precision": wanted_row(options).to_dict(), "tools": tool_versions()}
    return _compared({**facts, "checkpoint": checkpoint_content, "options": recorded_options(options)})


def known_inputs(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a bundle was made from."""
    known = content(manifest.get("revision"), manifest.get("content_key"))
    return _compared({"checkpoint": known, **{key: manifest.get(key) for key in KEYS}})


def _compared(inputs: Mapping[str, Any]) -> dict[str, Any]:
    tools = {name: version for name, version in (inputs["tools"] or {}).items() if name not in NEUTRAL_TOOLS}
    plain: dict[str, Any] = json.loads(json.dumps({**inputs, "tools": tools}))
    return plain


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what differs."""
    found: list[str] = []
    for key in sorted({*known, *wanted}):
        old, new = known.get(key), wanted.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}")
    return found
