"""What a report says about a quantized bundle: sensitivity, the gate, what was excluded, smoothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from t5edge.tools.report.charts import Bar, Cell, Dumbbell, HeatMap

Facts = dict[str, Any]
ROLES = {
    "encoder": ("qkv", "o", "wi", "wo"),
    "decoder": ("qkv", "o", "cross_q", "cross_kv", "cross_o", "wi", "wo"),
}
LEAST = 1e-12
"""Smaller divergences are shaded like this one."""
SHADES = 7
MOST_SHOWN = 12
MOST_LAYERS = 512
"""Of a heat map."""


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


def quantization_facts(plan: Mapping[str, Any]) -> Facts:
    """What the page shows of a quantization plan."""
    measured = [{**point, "alone": _alone(point)} for point in plan["sites"] if _alone(point) is not None]
    alone = {point["name"]: f"{point['alone']:.2e}" for point in measured}
    return {
        "sensitivity": _sensitivity(measured),
        "gate": _gate(plan["gate"]) if plan.get("gate") else None,
        "gate_note": _gate_note(plan["gate"]) if plan.get("gate") else "",
        "excluded": [(name, alone.get(name, "not measured")) for name in plan["kept"]],
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
    others = [Bar(p["name"], p["alone"], f"{p['alone']:.1e}") for p in points if "." not in p["name"]]
    maps = [found for stack in ROLES if (found := _heat_map(stack, points, least, most)).layers]
    measure = MEASURES["kl" if "kl" in points[0] else "hidden"]
    listed = [(p["name"], _shape(p), f"{p['alone']:.2e}", _stored(p)) for p in points]
    return {
        "least": least,
        "most": most,
        "maps": maps,
        "others": tuple(others),
        "measure": measure,
        "shades": SHADES,
        "listed": listed,
    }


def _heat_map(stack: str, points: Sequence[Mapping[str, Any]], least: float, most: float) -> HeatMap:
    cells = []
    for point in points:
        name = point["name"].split(".")  # encoder.block.3.wo
        if name[0] == stack and len(name) == 4 and int(name[2]) < MOST_LAYERS and name[3] in ROLES[stack]:
            cells.append(Cell(name[3], int(name[2]), _shade(point["alone"], least, most), bool(point["kept"])))
    layers = 1 + max((cell.layer for cell in cells), default=-1)
    present = {cell.role for cell in cells}
    return HeatMap(stack, tuple(role for role in ROLES[stack] if role in present), layers, tuple(cells))


def _shade(value: float, least: float, most: float) -> int:
    """0 to ``SHADES`` - 1, by the logarithm."""
    place = math.log(max(value, LEAST) / least) / math.log(most / least) if most > least else 0.0
    return max(0, min(SHADES - 1, int(place * SHADES)))


def _shape(point: Mapping[str, Any]) -> str:
    return f"{point['shape'][0]} x {point['shape'][1]}"


def _stored(point: Mapping[str, Any]) -> str:
    if point["kept"]:
        return "excluded"
    kind = f"int{point['bits']} weights"
    return f"{kind}, int8 input up to {point['range']:.3g}" if "range" in point else kind


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
    largest = sorted(distinct.values(), key=lambda point: -point["plain_error"])[:MOST_SHOWN]
    shown = tuple(Dumbbell(point["name"], point["plain_error"], point["error"]) for point in largest)
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
