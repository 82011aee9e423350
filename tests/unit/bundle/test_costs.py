"""Costs: recorded at export, computed at any sizes without the graph; the figures that counting on the graph gave."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.manifests import tiny_manifest
from t5edge.bundle.costs import GatheredTable, GraphCosts
from t5edge.cli import main
from t5edge.exporter.graph.costs import read_costs
from t5edge.tools.costs import bundle_costs

HOME = Path(__file__).parents[2] / "bundles-0.1"
ONE = {"batch": 1, "source": 128, "target": 1, "past": 64}
SEVERAL = {"batch": 3, "source": 7, "target": 2, "past": 0}


@pytest.mark.parametrize(
    ("graph", "sizes", "weight_bytes", "flops", "nodes"),
    [
        ("efficient-kv16-fp32/encoder", ONE, 356520, 26935296, 63),
        ("efficient-kv16-fp32/encoder", SEVERAL, 333480, 3443328, 63),
        ("efficient-kv16-fp32/decoder", ONE, 568592, 430032, 138),
        ("efficient-kv16-fp32/decoder", SEVERAL, 571072, 1732320, 138),
        ("byt5-int8/encoder", ONE, 1467380, 402292736, 210),
        ("byt5-int8/encoder", SEVERAL, 1425864, 58195200, 210),
        ("byt5-int8/decoder", ONE, 611608, 1381120, 104),
        ("byt5-int8/decoder", SEVERAL, 614068, 7156224, 104),
    ],
)
def test_figures_are_those_of_the_first_release(
    graph: str, sizes: dict[str, int], weight_bytes: int, flops: int, nodes: int
) -> None:
    """Recorded with the function that the first release had, which walked the graph at every call."""
    found = read_costs(HOME / f"{graph}.onnx").at(sizes)
    assert (found["weight_bytes"], found["flops"], found["nodes"]) == (weight_bytes, flops, nodes)
    assert sum(found["operators"].values()) == nodes


def test_plain_arithmetic() -> None:
    attentions = {"source": 1, "past + target": 2}
    costs = GraphCosts(4, {"MatMul": 4}, "target", 100, 6, attentions, 400, (GatheredTable(80, 8),))
    sizes = {"batch": 2, "source": 5, "target": 3, "past": 4}
    assert costs.weight_bytes(sizes) == 400 + 6 * 8
    assert costs.weight_bytes({**sizes, "batch": 20}) == 400 + 80, "no more than the whole table"
    assert costs.flops(sizes) == 2 * 6 * 100 + 4 * 6 * 6 * (5 + 2 * 7)


def test_the_manifest_comes_first() -> None:
    recorded = {"decoder": GraphCosts(1, {}, "target", 0, 0, {}, 0)}
    assert bundle_costs(Path("nowhere"), tiny_manifest(costs=recorded)) == recorded


def test_without_onnx_ir_an_older_bundle_shows_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "t5edge.exporter.graph.costs", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert main(["inspect", str(HOME / "byt5-int8")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.count("?") == 4 and "decoder" in line for line in lines)
    assert [line for line in lines if line.endswith("pip install onnx-ir")] != []
    assert main(["bench", str(HOME / "byt5-int8"), "--quick", "--source", "4", "--new-tokens", "2"]) == 0
    shown = capsys.readouterr().out
    assert "?" in shown
    assert "pip install onnx-ir" in shown
