from __future__ import annotations

import re
import sys

import pytest

from t5edge.errors import UserError
from t5edge.tools.report import charts
from t5edge.tools.report.charts import Bar, Cell, Dumbbell, HeatMap

HOSTILE = '<script>$x^{2</script>"\'\x1b[2J\ud800 id="a" url(x)'


def parts(svg: str) -> set[str]:
    return set(re.findall(r"<(\w+)", svg))


def test_bars_are_as_long_as_their_values_and_keep_their_texts() -> None:
    svg = charts.bars((Bar("whole", 4.0, "4 MB", True), Bar("a & b", 1.0, "1 MB")), "sizes")
    ends = [float(x) for x in re.findall(r"M 0 [\d.]+\s+L ([\d.]+) ", svg)]
    assert ends == [charts.WIDTH, charts.WIDTH / 4]
    assert 'aria-label="sizes"' in svg
    assert "a &amp; b" in svg
    assert "var(--muted-bar)" in svg


def test_a_heat_map_frames_what_is_marked() -> None:
    cells = (Cell("qkv", 0, 6, True), Cell("wo", 1, 0, False))
    svg = charts.heat_map(HeatMap("encoder", ("qkv", "wo"), 2, cells))
    assert (svg.count("var(--heat-6)"), svg.count("var(--heat-0)"), svg.count("stroke: var(--kept)")) == (1, 1, 1)
    assert charts.heat_scale(1e-9, 1e-3, 7).count("var(--heat-") == 7


@pytest.mark.parametrize("count", [0, 1])
def test_empty_charts_are_drawn(count: int) -> None:
    assert charts.bars((Bar("nothing", 0.0, "0"),) * count, "sizes").startswith("<svg")
    assert charts.dumbbells((Dumbbell("nothing", 0.0, 0.0),) * count, "errors").startswith("<svg")


def test_names_stay_text_and_nothing_refers_elsewhere() -> None:
    svg = charts.bars((Bar(HOSTILE, 1.0, HOSTILE),), HOSTILE) + charts.dumbbells((Dumbbell(HOSTILE, 1, 2),), HOSTILE)
    assert parts(svg) == {"svg", "g", "path", "text"}
    assert not re.search(r'href|<!--|<\?| id="| class="', re.sub(r">[^<]*<", "><", svg))
    assert "\x1b" not in svg
    assert "\ud800" not in svg
    assert re.findall(r"#[0-9a-f]{6}", svg) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'^report needs matplotlib: pip install "t5edge\[report\]"$'):
        charts.bars((Bar("never drawn before", 1.0, ""),), "sizes")
