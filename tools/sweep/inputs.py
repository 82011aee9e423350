"""What a bundle depends on: recorded in its manifest, and compared before an export is done again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.versions import tool_versions
from t5edge.options import ExportOptions, checkpoint_options, recorded_options, wanted_row
from t5edge.progress import Silent

NEUTRAL_TOOLS = ("python",)
"""Tools whose version does not change a bundle."""


def content(revision: str | None, content_key: str | None) -> str | None:
    """What tells a checkpoint: its commit on the hub, where its files' times differ from machine to machine."""
    return f"commit {revision}" if revision else content_key


def wanted_inputs(options: ExportOptions, checkpoint_content: str | None) -> dict[str, Any]:
    """The inputs an export would have now; ``checkpoint_content`` as ``content`` gives it."""
    facts = {"precision": wanted_row(options).to_dict(), "tools": tool_versions()}
    return _compared({**facts, "checkpoint": checkpoint_content, "options": recorded_options(options)})


def known_inputs(manifest: Manifest) -> dict[str, Any]:
    """The inputs that a bundle was made from."""
    facts = {"precision": manifest.precision.to_dict(), "tools": manifest.tools, "options": manifest.options}
    return _compared({**facts, "checkpoint": content(manifest.revision, manifest.content_key)})


def changed_inputs(manifest: Manifest, options: ExportOptions) -> list[str]:
    """Dotted names of what a bundle was made from that an export would have otherwise now.

    Raises:
        UserError: the checkpoint cannot be opened, or the graphs cannot be what its targets read.
    """
    from t5edge.exporter.checkpoint.open import open_checkpoint
    from t5edge.pipeline import choose_opset

    options = choose_opset(options, wanted_row(options), Silent())
    checkpoint = open_checkpoint(options.variant, **checkpoint_options(options))
    wanted = wanted_inputs(options, content(checkpoint.revision, checkpoint.content_key()))
    adapters = [facts.sha256 for facts in checkpoint.adapters] != [facts.sha256 for facts in manifest.adapters or ()]
    prompts = [facts.sha256 for facts in checkpoint.prompts] != [facts.sha256 for facts in manifest.prompts or ()]
    return differences(known_inputs(manifest), wanted) + ["adapters"] * adapters + ["prompts"] * prompts


def _compared(inputs: Mapping[str, Any]) -> dict[str, Any]:
    tools = {name: version for name, version in inputs["tools"].items() if name not in NEUTRAL_TOOLS}
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


def bundle_facts(manifest: Manifest) -> dict[str, Any]:
    """What an outcome says of a bundle."""
    return {
        "bytes": manifest.stored_bytes,
        "passed": manifest.passed,
        "weights_sha256": manifest.hashes.get("weights.safetensors"),
    }
