"""Charts as SVG inside the page, drawn by matplotlib.

Colours are those of the page's style sheet, so that light and dark hold for charts too: matplotlib gets a number for
each, which becomes the CSS variable. Of its SVG only shapes and texts are kept: no references, styles or identifiers.
Charts are as wide as a phone; wider pages scale them.
"""

from __future__ import annotations

import io
import logging
import re
from functools import cache
from typing import Any, NamedTuple
from xml.etree import ElementTree

from t5edge.errors import UserError, install
from t5edge.tools.plotting import load_pyplot

WIDTH = 380
"""Of a chart, in CSS pixels of a phone."""
COLOURS = ("ink", "soft", "line", "accent", "muted-bar", "card", "kept", *(f"heat-{shade}" for shade in range(7)))
"""CSS variables of the page."""
KEPT_TAGS = {"svg", "g", "path", "text"}
KEPT_ATTRIBUTES = {"d", "x", "y", "style", "viewBox"}
SETTINGS = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 11, "path.simplify": False}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What a page never holds: control characters, and halves of characters, which no encoding has."""


class Bar(NamedTuple):
    """A name, how long it is drawn, what is written behind it; ``muted`` is what the others are compared with."""

    name: str
    value: float
    text: str
    muted: bool = False


class Cell(NamedTuple):
    """A cell of a heat map; ``marked`` ones are framed."""

    role: str
    layer: int
    shade: int
    marked: bool


class HeatMap(NamedTuple):
    """Roles down, layers across."""

    stack: str
    roles: tuple[str, ...]
    layers: int
    cells: tuple[Cell, ...]


class Dumbbell(NamedTuple):
    """A point before (hollow) and after (filled)."""

    name: str
    before: float
    after: float


def colour(name: str) -> str:
    """The number that stands for a CSS variable in matplotlib."""
    return f"#0000{COLOURS.index(name) + 1:02x}"


def visible(text: str) -> str:
    """``text`` with what a page must not hold made visible."""
    return CONTROL.sub("\ufffd", text)


@cache
def bars(rows: tuple[Bar, ...], label: str) -> str:
    """Horizontal bars from a common base, names above them. ``label``: what the chart is to those who do not see it."""
    figure, axes = _canvas(len(rows) * 38 + 4)
    most = max((row.value for row in rows), default=0) or 1
    for index, row in enumerate(rows):
        top = index * 38
        _text(axes, 0, top + 14, row.name, "soft")
        _text(axes, WIDTH, top + 14, row.text, "ink", "right")
        length = max(2.0, WIDTH * row.value / most)
        axes.barh(top + 26, length, 11, color=colour("muted-bar" if row.muted else "accent"), clip_on=False)
    return _svg(figure, label)


@cache
def heat_map(chart: HeatMap) -> str:
    """A square for each matrix, framed where it is marked."""
    left = 64
    size = min(28.0, (WIDTH - left) / max(chart.layers, 1))
    figure, axes = _canvas(int(20 + size * len(chart.roles)))
    every = 1 if size >= 14 else 4
    for layer in range(0, chart.layers, every):
        _text(axes, left + (layer + 0.5) * size, 12, str(layer), "soft", "center")
    for row, role in enumerate(chart.roles):
        _text(axes, left - 8, 20 + (row + 0.5) * size + 4, role, "soft", "right")
    for cell in chart.cells:
        x, y = left + cell.layer * size, 20 + chart.roles.index(cell.role) * size
        _square(axes, (x + 1, y + 1), size - 2, facecolor=colour(f"heat-{cell.shade}"), edgecolor="none")
        if cell.marked:
            _square(axes, (x + 2, y + 2), size - 4, facecolor="none", edgecolor=colour("kept"), linewidth=2)
    return _svg(figure, f"sensitivity of the {chart.stack}'s matrices by layer")


@cache
def heat_scale(least: float, most: float, shades: int) -> str:
    """The legend of a heat map."""
    figure, axes = _canvas(20)
    _text(axes, 64, 14, f"{least:.1e}", "soft", "right")
    for shade in range(shades):
        _square(axes, (72 + shade * 24, 4), 12, 22, facecolor=colour(f"heat-{shade}"), edgecolor="none")
    _text(axes, 80 + shades * 24, 14, f"{most:.1e}", "soft")
    return _svg(figure, "scale from least to most")


@cache
def dumbbells(points: tuple[Dumbbell, ...], label: str) -> str:
    """A line from before to after for each point, on an axis that begins at 0."""
    most = max((max(point.before, point.after) for point in points), default=0) or 1
    figure, axes = _canvas(24 + len(points) * 30)
    for tick in range(5):
        x = 6 + (WIDTH - 12) * tick / 4
        axes.vlines(x, 18, 22 + len(points) * 30, color=colour("line"), linewidth=1, clip_on=False, zorder=0)
        _text(axes, x, 12, f"{most * tick / 4:.2%}", "soft", ("left", "center", "center", "center", "right")[tick])
    for index, point in enumerate(points):
        y = 44 + index * 30
        before, after = (6 + (WIDTH - 12) * value / most for value in (point.before, point.after))
        _text(axes, 0, y - 8, point.name, "soft")
        axes.plot([before, after], [y, y], color=colour("muted-bar"), linewidth=2, clip_on=False)
        _circle(axes, (before, y), facecolor=colour("card"), edgecolor=colour("soft"))
        _circle(axes, (after, y), facecolor=colour("accent"), edgecolor="none")
    return _svg(figure, label)


def _canvas(height: int) -> tuple[Any, Any]:
    """A figure in CSS pixels, the origin at its top left, nothing drawn."""
    try:
        pyplot = load_pyplot()
    except UserError as error:
        raise UserError(f"report needs matplotlib: {install('report')}") from error
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of building its font cache, among others
    with pyplot.rc_context(SETTINGS):
        figure = pyplot.figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    figure.patch.set_visible(False)
    return figure, axes


def _text(axes: Any, x: float, y: float, content: str, kind: str, align: str = "left") -> None:
    axes.text(x, y, visible(content), color=colour(kind), ha=align, va="baseline", fontsize=11, parse_math=False)


def _square(axes: Any, corner: tuple[float, float], height: float, width: float | None = None, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, width or height, height, clip_on=False, **style))


def _circle(axes: Any, centre: tuple[float, float], **style: Any) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(centre, 4.5, clip_on=False, linewidth=1.6, zorder=3, **style))


def _svg(figure: Any, label: str) -> str:
    """What was drawn, as markup for the page."""
    pyplot = load_pyplot()
    written = io.StringIO()
    with pyplot.rc_context(SETTINGS):
        figure.savefig(written, format="svg", transparent=True)
    pyplot.close(figure)
    root = _kept(ElementTree.fromstring(written.getvalue()))
    root.attrib |= {"role": "img", "aria-label": visible(label)}
    return ElementTree.tostring(root, encoding="unicode")


def _kept(element: ElementTree.Element) -> ElementTree.Element:
    """Shapes and texts of matplotlib's drawing, under names without a namespace, in the page's colours and font."""
    name = element.tag.rpartition("}")[2]
    attributes = {key: value for key, value in element.attrib.items() if key in KEPT_ATTRIBUTES}
    if "style" in attributes:
        attributes["style"] = _style(attributes["style"])
    copy = ElementTree.Element(name, attributes)
    copy.text = element.text if name == "text" else None
    for child in element:
        if child.tag.rpartition("}")[2] in KEPT_TAGS:
            copy.append(_kept(child))
    return copy


def _style(style: str) -> str:
    kept = [part.strip() for part in style.split(";")]
    kept = [part for part in kept if not part.startswith(("font", "url"))]
    return re.sub(r"#0000([0-9a-f]{2})", _variable, "; ".join(part for part in kept if part))


def _variable(found: re.Match[str]) -> str:
    index = int(found[1], 16)
    return f"var(--{COLOURS[index - 1]})" if 0 < index <= len(COLOURS) else found[0]
