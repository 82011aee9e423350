"""The planned variants as an image: parameters against the time of a request, and decode step against encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5edge.tools.planning.devices import DeviceSpec
from t5edge.tools.planning.plan import DECODED_TOKENS, Lengths, VariantCost, frontier
from t5edge.tools.plotting import load_pyplot, save_figure

INK, QUIET, ACCENT = "#22313f", "#8795a1", "#d1495b"
APART = 0.042
"""Share of the axis that labels must be apart; the frontier's others go without a name."""


def draw(costs: Sequence[VariantCost], device: DeviceSpec, lengths: Lengths, path: Path) -> None:
    """Write the image; its format follows the file's ending.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    pyplot = load_pyplot()
    with pyplot.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained")
        best = frontier(costs)
        _requests(left, costs, best, lengths)
        points = _halves(right, costs, best, lengths)
        bar = figure.colorbar(points, ax=right, label="parameters (millions)", pad=0.02, format="{x:g}")
        bar.outline.set_visible(False)
        _titles(figure, costs, device)
        save_figure(figure, path)


def _titles(figure: Any, costs: Sequence[VariantCost], device: DeviceSpec) -> None:
    figure.suptitle(
        f"{len(costs)} variants in {costs[0].precision} on {device.name}: what the roofline allows",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    figure.supxlabel(
        "Accuracy is not in this picture: parameters stand for capacity only. Bounds from below at batch 1, "
        f"not measurements.\n{device.bandwidth:.4g} GB/s; {device.source}",
        x=0.01,
        ha="left",
        fontsize=8,
        color=QUIET,
    )


def _requests(axes: Any, costs: Sequence[VariantCost], best: Sequence[VariantCost], lengths: Lengths) -> None:
    """Parameters against the time of a request, with the frontier."""
    axes.scatter(*_columns(costs, "parameters", "request_ms"), s=22, color=QUIET, alpha=0.55, linewidths=0)
    x, y = _columns(best, "parameters", "request_ms")
    axes.step(x, y, where="pre", color=ACCENT, linewidth=1, alpha=0.6)
    axes.scatter(x, y, s=34, color=ACCENT, zorder=3, label="no other has as many parameters in less time")
    axes.set(xscale="log", yscale="log", xlabel="parameters (millions)")
    _label(axes, best)
    axes.set_ylabel(f"encode {lengths.source} tokens and decode {DECODED_TOKENS} (ms)")
    axes.legend(loc="upper left", frameon=False)
    _tidy(axes)


def _halves(axes: Any, costs: Sequence[VariantCost], best: Sequence[VariantCost], lengths: Lengths) -> Any:
    """The two parts of a request against each other, with the frontier's members ringed."""
    from matplotlib.colors import LogNorm

    x, y = _columns(costs, "encoder", "decode")
    points = axes.scatter(x, y, c=[cost.parameters / 1e6 for cost in costs], norm=LogNorm(), cmap="viridis", s=26)
    marks = _columns(best, "encoder", "decode")
    axes.scatter(*marks, s=62, facecolors="none", edgecolors=ACCENT, linewidths=1.1, label="on the frontier")
    axes.legend(loc="upper left", frameon=False)
    axes.set(xscale="log", yscale="log", xlabel=f"encode {lengths.source} tokens (ms)")
    axes.set_ylabel(f"decode one token, {lengths.past} before it (ms)")
    _tidy(axes)
    return points


def _columns(costs: Sequence[VariantCost], first: str, second: str) -> tuple[list[float], list[float]]:
    return [_value(cost, first) for cost in costs], [_value(cost, second) for cost in costs]


def _value(cost: VariantCost, name: str) -> float:
    value = getattr(cost, name)
    if name == "parameters":
        return float(value / 1e6)
    return float(getattr(value, "ms", value))


def _label(axes: Any, best: Sequence[VariantCost]) -> None:
    """Names beside the frontier, those that fit, from the largest down."""
    last = float("inf")
    span = math.log(axes.get_ylim()[1] / axes.get_ylim()[0])
    for cost in best[::-1]:
        height = math.log(cost.request_ms) / span
        if last - height < APART:
            continue
        last = height
        name = cost.name.rpartition("/")[2].removeprefix("t5-efficient-")
        place = (_value(cost, "parameters"), cost.request_ms)
        axes.annotate(name, place, (6, -3), textcoords="offset points", va="top", fontsize=8, color=INK)


def _tidy(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.18, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, which="both", length=3)
