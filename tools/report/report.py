"""One self-contained HTML page about a bundle: sizes, parity, what was quantized and what it costs, ranges, speed.

Everything comes from the bundle's manifest and ``parity.json``; nothing is run, and nothing is loaded from elsewhere.
The page is ``page.html.j2``, which escapes whatever it shows; here is what it needs besides the manifest.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from t5edge.bundle.engine_record import Engines
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.schema import plain
from t5edge.errors import UserError, install
from t5edge.runtime.tensorrt.records import run_words

MARKER = "<!doctype html><!-- t5edge report -->\n"
"""What a page begins with. Files that begin otherwise are never overwritten."""
ROLES = {
    "encoder": ("qkv", "o", "wi", "wo"),
    "decoder": ("qkv", "o", "cross_q", "cross_kv", "cross_o", "wi", "wo"),
}
SHADES = 7
"""Shades of the heat map, ``--heat-0`` (least) to ``--heat-6``."""
LEAST = 1e-12
"""Smaller divergences are shaded like this one."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
Facts = dict[str, Any]


class Bound(NamedTuple):
    """One limit of a quantization gate: its key and that of what it bounds, and how both are shown."""

    name: str
    limit: str
    title: str
    words: str
    form: str

    def holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.words == "at most" else value >= limit


BOUNDS = {
    "kl": (
        Bound("kl", "max_kl", "mean KL (nats)", "at most", ".2e"),
        Bound("top1", "min_top1", "same best token", "at least", ".2%"),
    ),
    "hidden": (
        Bound("hidden", "max_hidden", "relative error", "at most", ".2e"),
        Bound("token", "max_token", "worst token", "at most", ".2e"),
    ),
}
MEASURES = {
    "kl": "KL divergence of the next-token distribution, in nats,",
    "hidden": "Relative error of the hidden states",
}
"""What the sensitivity of a quantization point is measured in."""


def report_page(folder: Path) -> str:
    """The page of a bundle as HTML text.

    Raises:
        UserError: ``folder`` is not a bundle, its manifest is damaged, or jinja2 is missing.
    """
    environment = _environment()
    from jinja2 import UndefinedError

    manifest = Manifest.read(folder)
    path = folder / "parity.json"
    try:
        parity = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return MARKER + environment.get_template("page.html.j2").render(**_facts(manifest), parity=parity)
    except (
        UndefinedError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        what = CONTROL.sub("?", f"{type(error).__name__}: {error}".splitlines()[0])[:120]
        raise UserError(
            f"'{folder}' cannot be reported, its bundle.json or parity.json is damaged ({what}); export it again."
        ) from error


def write_page(page: str, out: Path, folder: Path) -> None:
    """Write ``page`` to ``out``, which may be a page of an earlier run but nothing else, and not in the bundle.

    Raises:
        UserError: ``out`` is in the bundle ``folder``, is another file, or cannot be written.
    """
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"'{out}' lies in the bundle, which stays as it is; choose another --out.")
    try:
        if out.exists() and not _is_page(out):
            raise UserError(f"'{out}' exists and is not a page of 't5edge report'; remove it or choose another --out.")
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror}; choose another --out.") from error


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARKER)) == MARKER.encode()


@cache
def _environment() -> Any:
    """Templates of this folder; everything they show is escaped, control characters are made visible.

    Raises:
        UserError: jinja2 is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise UserError(f"report needs jinja2: {install('report')}") from error

    def visible(value: Any) -> Any:
        return CONTROL.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"megabytes": megabytes, "short": _short}
    return environment


def _facts(manifest: Manifest) -> Facts:
    """The manifest, and what is computed from it. This is where it is read."""
    plan, stored = manifest.quantization, _stored_files(plain(manifest.files))
    return {
        "manifest": manifest,
        "precision": manifest.precision,
        "size": sum(size for name, size in stored if name.endswith((".onnx", ".safetensors"))),
        "sizes": _sizes(4 * manifest.architecture.parameters, stored),
        "times": lambda part, key: _times(plain(manifest.speed), part, key),
        "shades": SHADES,
        "ranges": list(_ranges(plain(manifest.rescale))),
        "engines": list(_engines(manifest.engines)),
        **({} if plan is None else _quantization(plan)),
    }


def _stored_files(files: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(name, bytes) of each file that is no link to another, the largest first."""
    stored = [(name, facts["bytes"]) for name, facts in files.items() if "link" not in facts]
    return sorted(stored, key=lambda item: -item[1])


def _sizes(full: int, stored: Sequence[tuple[str, int]]) -> list[Facts]:
    rows = [("float32 weights", full), *stored[:4]]
    return [_bar(name, size, megabytes(size), muted=index == 0) for index, (name, size) in enumerate(rows)]


def _bar(name: str, value: float, text: str, muted: bool = False) -> Facts:
    return {"name": name, "value": value, "text": text, "muted": muted}


def _times(speed: Mapping[str, Any], part: str, key: str) -> list[Facts]:
    times = {side: speed[side][key] for side in ("fp32", "quantized")}
    return [_bar(f"{part}, {side}", ms, f"{ms:,.2f} ms", side == "fp32") for side, ms in times.items()]


def _quantization(plan: Mapping[str, Any]) -> Facts:
    measured = [{**point, "alone": _alone(point)} for point in plan["sites"] if _alone(point) is not None]
    alone = {point["name"]: point["alone"] for point in measured}
    return {
        "sensitivity": _sensitivity(measured),
        "gate": _gate(plan["gate"]) if plan.get("gate") else None,
        "gate_note": _gate_note(plan["gate"]) if plan.get("gate") else "",
        "excluded": [(name, f"{alone.get(name, 0):.2e}") for name in plan["kept"]],
        "smoothing": _smoothing(plan),
    }


def _alone(point: Mapping[str, Any]) -> Any:
    """What a point costs when nothing else is quantized; None where that was not measured."""
    return point.get("kl", point.get("hidden"))


def _gate(gate: Mapping[str, Any]) -> Facts:
    """The gate as a table: its columns, their limits, and what was tried."""
    bounds = BOUNDS["kl" if "max_kl" in gate else "hidden"]
    return {
        "columns": [bound.title for bound in bounds],
        "limits": [f"{bound.words} {format(gate[bound.limit], bound.form)}" for bound in bounds],
        "tried": [
            {
                "kept": step["kept"],
                "shown": [format(step[bound.name], bound.form) for bound in bounds],
                "holds": all(bound.holds(step[bound.name], gate[bound.limit]) for bound in bounds),
            }
            for step in gate["tried"]
        ],
    }


def _sensitivity(points: Sequence[Mapping[str, Any]]) -> Facts | None:
    """Heat maps of the points in layers, bars of the others; None where nothing was measured."""
    inside = [point["alone"] for point in points if "." in point["name"]]
    if not inside:
        return None
    least, most = (max(end, LEAST) for end in (min(inside), max(inside)))
    others = [_bar(p["name"], p["alone"], f"{p['alone']:.1e}") for p in points if "." not in p["name"]]
    maps = [found for stack in ROLES if (found := _heat_map(stack, points, least, most))["layers"]]
    measure = MEASURES["kl" if "kl" in points[0] else "hidden"]
    return {"least": least, "most": most, "maps": maps, "others": others, "measure": measure}


def _heat_map(stack: str, points: Sequence[Mapping[str, Any]], least: float, most: float) -> Facts:
    cells = {}
    for point in points:
        name = point["name"].split(".")  # encoder.block.3.wo
        if name[0] == stack and len(name) == 4:
            shade = _shade(point["alone"], least, most)
            cells[name[3], int(name[2])] = {"title": _title(point), "shade": shade, "marked": point["kept"]}
    layers = 1 + max((layer for _, layer in cells), default=-1)
    roles = [role for role in ROLES[stack] if any(key[0] == role for key in cells)]
    return {"stack": stack, "roles": roles, "layers": layers, "cells": cells}


def _shade(value: float, least: float, most: float) -> int:
    """0 to ``SHADES`` - 1, by the logarithm."""
    place = math.log(max(value, LEAST) / least) / math.log(most / least) if most > least else 0.0
    return max(0, min(SHADES - 1, int(place * SHADES)))


def _title(point: Mapping[str, Any]) -> str:
    kind = "excluded from quantization" if point["kept"] else f"int{point['bits']} weights"
    if not point["kept"] and "range" in point:
        kind += f", int8 input up to {point['range']:.3g}"
    return f"{point['name']} {point['shape'][0]} x {point['shape'][1]}: {point['alone']:.2e} alone; {kind}"


def _gate_note(gate: Mapping[str, Any]) -> str:
    ties = "" if "tie" not in gate else ", ties counted"  # manifests from before this was recorded say nothing
    if gate.get("tie"):
        ties = f", tokens within {gate['tie']:.2g} nats of each other taken as equal"
    if "max_kl" in gate:
        asked = f"KL at most {gate['max_kl']:g} nats and the same best token at {gate['min_top1']:.1%} of the positions"
    else:
        asked = f"relative error of the hidden states at most {gate['max_hidden']:g}, of no token {gate['max_token']:g}"
    return (
        f"The gate on the calibration texts: {asked}{ties}. The most sensitive matrices stay in higher precision until "
        "it holds."
    )


def _smoothing(plan: Mapping[str, Any]) -> Facts:
    points = [point for point in plan["sites"] if "plain_error" in point]
    distinct = {(point["plain_error"], point["error"]): point for point in points}
    shown = sorted(distinct.values(), key=lambda point: -point["plain_error"])[:30]
    smoothed = sum(point["alpha"] is not None for point in points)
    note = (
        "Relative error of each product with quantized input and weight: hollow as it is, filled after SmoothQuant "
        f"with powers of two ({smoothed} of {len(points)} products). The largest {len(shown)}; texts: {plan['texts']}, "
        f"{plan['recipe']['count']} of them, observer {plan['recipe']['settings']['observer']}."
    )
    ranges = [
        (
            point["name"],
            f"{point['range']:.4g}" if "range" in point else "",
            "" if point["alpha"] is None else f"{point['alpha']:g}",
            f"{point['error']:.3%}",
        )
        for point in points
    ]
    return {"points": points, "shown": shown, "note": note, "ranges": ranges}


def _ranges(rescale: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    """Stack, largest activation, divisor and headroom of each stack whose activations were measured."""
    for stack in ROLES:
        facts = rescale.get(stack) or {}
        if facts.get("largest_residual"):
            headroom = f"{facts['headroom']:,.1f}x" if facts.get("headroom") else ""
            yield stack, f"{facts['largest_residual']:,.0f}", f"2^{facts.get('k', 0)}", headroom


def _engines(engines: Engines) -> Iterable[tuple[str, ...]]:
    for target, capabilities in engines.items():
        for capability, entry in capabilities.items():
            for graph, record in entry.graphs.items():
                found = record.attention.fused
                fused = "not shown by the plan" if found is None else f"{found} of {record.attention.expected}"
                size, seconds = megabytes(record.bytes), f"{record.seconds:.1f}"
                yield f"{target} {capability}", graph, size, seconds, fused, run_words(entry)


def megabytes(size: float) -> str:
    """``size`` bytes for a reader."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.0f} kB"


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
