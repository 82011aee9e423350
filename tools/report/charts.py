"""Charts of the report as inline SVG, drawn here: a heat map of layers and roles, dumbbells, and bars.

Colours are CSS variables of the page, so that both colour schemes work; every mark has a title for the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

CELL, GAP, LABEL = 34, 2, 92
STEPS = 7
"""Shades of the heat map, ``--heat-0`` (least) to ``--heat-6``."""


LEAST = 1e-12
"""Smaller values are shaded like this one."""


@dataclass(frozen=True)
class Cell:
    """One site: ``value`` > 0 is shaded on a log scale; ``marked`` draws a frame; ``title`` is shown on hover."""

    value: float
    title: str
    marked: bool = False


def heat_map(
    cells: Mapping[tuple[str, int], Cell], roles: Sequence[str], layers: int, span: tuple[float, float], label: str
) -> str:
    """Roles down, layers across; shades by the logarithm of the value between the two ends of ``span``."""
    low, high = (math.log10(max(end, LEAST)) for end in span)
    parts = [_text(LABEL + layer * CELL + CELL / 2, 12, str(layer), "middle", "axis") for layer in range(layers)]
    for row, role in enumerate(roles):
        top = 20 + row * CELL
        parts.append(_text(LABEL - 10, top + CELL / 2 + 4, role, "end", "axis"))
        for layer in range(layers):
            cell = cells.get((role, layer))
            if cell is not None:
                parts.append(_cell(LABEL + layer * CELL, top, cell, low, high))
    return _svg(LABEL + layers * CELL + 4, 24 + len(roles) * CELL, parts, label)


def _cell(x: float, y: float, cell: Cell, low: float, high: float) -> str:
    place = (math.log10(max(cell.value, LEAST)) - low) / (high - low) if high > low else 0.0
    shade = max(0, min(STEPS - 1, int(place * STEPS)))
    size = CELL - GAP
    frame = f'<rect class="kept" x="{x + 2}" y="{y + 2}" width="{size - 4}" height="{size - 4}" rx="2"/>'
    return (
        f'<g><title>{escape(cell.title)}</title><rect x="{x}" y="{y}" width="{size}" height="{size}" rx="3" '
        f'style="fill:var(--heat-{shade})"/>{frame if cell.marked else ""}</g>'
    )


def heat_scale(span: tuple[float, float]) -> str:
    """The legend of a heat map: the smallest value, the shades, the largest."""
    shades = [
        f'<rect x="{78 + index * 22}" y="4" width="20" height="12" rx="2" style="fill:var(--heat-{index})"/>'
        for index in range(STEPS)
    ]
    ends = [
        _text(72, 14, f"{max(span[0], LEAST):.1e}", "end", "axis"),
        _text(84 + STEPS * 22, 14, f"{span[1]:.1e}", "start", "axis"),
    ]
    return _svg(160 + STEPS * 22, 20, [*shades, *ends], "scale from least to most")


@dataclass(frozen=True)
class Dumbbell:
    """Two values of one thing, in the same unit: before and after."""

    name: str
    before: float
    after: float


def dumbbells(rows: Sequence[Dumbbell], label: str, width: int = 720) -> str:
    """A line from before (hollow) to after (filled) per row, on an axis that begins at 0."""
    left, right, height = 170, 60, 20
    most = max((max(row.before, row.after) for row in rows), default=1.0) or 1.0
    scale = (width - left - right) / most
    parts = []
    for tick in range(5):
        value = most * tick / 4
        x = left + value * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="20" y2="{24 + len(rows) * height}"/>')
        parts.append(_text(x, 12, f"{value:.2%}", "middle", "axis"))
    for index, row in enumerate(rows):
        y = 32 + index * height
        before, after = left + row.before * scale, left + row.after * scale
        parts.append(
            f"<g><title>{escape(row.name)}: {row.before:.3%} to {row.after:.3%}</title>"
            f'<rect x="0" y="{y - height / 2}" width="{width}" height="{height}" fill="transparent"/>'
            f"{_text(left - 12, y + 4, row.name, 'end', 'axis')}"
            f'<line class="link" x1="{before:.1f}" x2="{after:.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="before" cx="{before:.1f}" cy="{y}" r="4.5"/>'
            f'<circle class="after" cx="{after:.1f}" cy="{y}" r="4.5"/></g>'
        )
    return _svg(width, 34 + len(rows) * height, parts, label)


@dataclass(frozen=True)
class Bar:
    """One bar: its length in the chart's unit and what is written behind it. ``muted`` is the thing compared with."""

    name: str
    value: float
    text: str
    muted: bool = False


def bars(rows: Sequence[Bar], label: str, width: int = 720) -> str:
    """Horizontal bars from a common base."""
    left, right, height = 170, 150, 30
    most = max((row.value for row in rows), default=1.0) or 1.0
    parts = []
    for index, row in enumerate(rows):
        y = index * height
        length = max(2.0, (width - left - right) * row.value / most)
        parts.append(
            f"<g><title>{escape(row.name)}: {escape(row.text)}</title>"
            f"{_text(left - 12, y + 19, row.name, 'end', 'axis')}"
            f'<rect class="{"bar muted" if row.muted else "bar"}" x="{left}" y="{y + 5}" width="{length:.1f}" '
            f'height="18" rx="3"/>{_text(left + length + 8, y + 19, row.text, "start", "value")}</g>'
        )
    return _svg(width, len(rows) * height + 4, parts, label)


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
