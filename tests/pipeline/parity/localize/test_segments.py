from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from support.deep_models import LAYERS, Exported
from t5edge.parity.localize.segments import CutGraph


def test_every_layer_is_cut_at_the_residual_stream(exported: Callable[..., Exported]) -> None:
    made = exported()
    encoder, decoder = (CutGraph(made.bundle, stack, "float", 0) for stack in ("encoder", "decoder"))  # type: ignore[arg-type]
    assert [len(encoder.sublayers[layer]) for layer in range(LAYERS - 1)] == [2] * (LAYERS - 1)
    assert [len(decoder.sublayers[layer]) for layer in range(LAYERS)] == [3] * LAYERS
    for graph in (encoder, decoder):
        chain = [sublayer for layer in sorted(graph.sublayers) for sublayer in graph.sublayers[layer]]
        assert chain[0].hidden is graph.first_hidden
        assert chain[-1].out is graph.last_hidden
        assert all(before.out is after.hidden for before, after in itertools.pairwise(chain))


def test_a_piece_runs_alone_and_loads_its_own_weights(
    exported: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = CutGraph(exported().bundle, "encoder", "float", 0)
    sublayer = graph.sublayers[5][1]
    named: list[str] = []
    monkeypatch.setattr(ir, "to_proto", _spy(ir.to_proto, named))
    hidden = np.random.default_rng(0).standard_normal((1, 4, 104)).astype(np.float32)
    added, out = graph.run({sublayer.hidden: hidden}, [sublayer.added, sublayer.out])
    np.testing.assert_allclose(out, hidden + added, rtol=1e-6)
    weights = [name for name in named if "weight" in name]
    assert weights
    assert all("encoder.block.5.layer.1." in name for name in weights)


def _spy(to_proto: Callable[..., object], named: list[str]) -> Callable[..., object]:
    def spy(model: ir.Model) -> object:
        named.extend(model.graph.initializers)
        return to_proto(model)

    return spy


def test_a_lost_addition_shows_in_the_count(exported: Callable[..., Exported]) -> None:
    graph = CutGraph(exported().bundle, "decoder", "float", 0)
    sublayer = graph.sublayers[17][1]
    node = sublayer.out.producer()
    assert node is not None
    node.replace_input_with(0 if node.inputs[0] is sublayer.hidden else 1, sublayer.added)
    assert len(graph._cut("decoder.block.")[17]) == 1


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
def test_inputs_are_rounded_to_the_compute_dtype(exported: Callable[..., Exported], compute: str) -> None:
    graph = CutGraph(exported().bundle, "encoder", compute, 0)
    exact = np.array([1.0, 1.0 + 2**-14, 3e-9], np.float32)
    rounded = graph._rounded(exact)
    assert rounded.dtype == np.float32
    assert list(rounded[:2]) == [1.0, 1.0]
    assert graph._rounded(np.array([2], np.int64)).dtype == np.int64
