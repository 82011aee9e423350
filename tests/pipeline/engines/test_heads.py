from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.bundles import Workshop
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import Limits
from t5edge.engines.attention import find_attentions
from t5edge.engines.builder import EngineSpec, build_engine, check_attention, engine_profiles
from t5edge.engines.heads import has_one_head, swap_batch_and_heads
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.kernels.attention.contract import attention
from t5edge.progress import Silent
from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.tensorrt.log import make_log

FUSED = {"encoder": 1, "decoder": 8, "decoder_in_place": 8}
"""Encoder: one layer. Decoders: two layers, self and cross attention, two profiles."""


@pytest.fixture(
    scope="module", params=[16, pytest.param(64, marks=pytest.mark.slow), pytest.param(256, marks=pytest.mark.slow)]
)
def one_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tiny model with a single head, as t5-efficient's ``nh1`` models have it."""
    folder = tmp_path_factory.mktemp(f"one-head-{request.param}")
    tiny = find_tiny_model("efficient-kv256-tiny")
    assert tiny.config["num_heads"] == 1
    saved = save_tiny_model(replace(tiny, config={**tiny.config, "d_kv": request.param}), folder / "checkpoint", seed=0)
    return Workshop(folder, open_checkpoint(str(saved), random_weights=None, revision=None))


def spec_of(folder: Path, graph: str, capability: str, max_batch: int) -> EngineSpec:
    manifest = Manifest.read(folder)
    limits = replace(manifest.limits, max_batch=max_batch)
    ports = manifest.ports[graph]
    return EngineSpec(
        folder / f"{graph}.onnx", ports, engine_profiles(limits, graph, "fused", 1), "fused", capability, False
    )


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("graph", list(FUSED))
def test_a_single_head_is_fused(one_head: Workshop, rtx: TensorRT, graph: str, max_batch: int) -> None:
    spec = spec_of(one_head.bundle("fp16"), graph, "8.6", max_batch)
    built = build_engine(rtx, spec, Silent())
    check_attention(spec, built)
    assert built.attention.fused == FUSED[graph]


@pytest.mark.slow
@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_single_head_on_every_generation(one_head: Workshop, rtx: TensorRT, precision: str, max_batch: int) -> None:
    for capability in rtx.flavor.compute_capabilities:
        for graph in FUSED if (capability, precision) != ("7.5", "bf16") else ():
            spec = spec_of(one_head.bundle(precision), graph, capability, max_batch)
            built = build_engine(rtx, spec, Silent())
            check_attention(spec, built)
            assert built.attention.fused == FUSED[graph]


def test_a_batch_of_one_leaves_room_for_a_second_row() -> None:
    """Both axes of size 1 would be dropped."""
    (encoder,) = engine_profiles(Limits(1, 64, 144), "encoder", "fused", 1)
    assert encoder["batch"] == (1, 1, 2)
    assert engine_profiles(Limits(1, 64, 144), "encoder", "fused", 2)[0]["batch"] == (1, 1, 1)
    assert engine_profiles(Limits(1, 64, 144), "encoder", "decomposable", 1)[0]["batch"] == (1, 1, 1)


def parse(rtx: TensorRT, folder: Path) -> tuple[object, ...]:
    log = make_log(rtx)
    builder = rtx.trt.Builder(log)
    network = builder.create_network(1 << int(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(folder / "decoder.onnx"))
    return network, parser, builder, log


@pytest.mark.usefixtures("no_collector")
def test_the_batch_takes_the_place_of_the_heads(one_head: Workshop, rtx: TensorRT) -> None:
    network, *_alive = parse(rtx, one_head.bundle("fp16"))
    found = find_attentions(rtx, network)[0]
    before = tuple(found.exit.get_output(0).shape)
    assert has_one_head(found.given())
    found.feed(swap_batch_and_heads(rtx, network, found.name, found.given()))
    assert not has_one_head(found.given())
    assert [tensor.shape[0] for tensor in found.given()] == [1, 1, 1, 1]
    (result,) = swap_batch_and_heads(rtx, network, "back", [found.exit.get_output(0)])
    assert tuple(result.shape) == before


@pytest.mark.usefixtures("no_collector")
def test_several_heads_stay_where_they_are(demo: Workshop, rtx: TensorRT) -> None:
    network, *_alive = parse(rtx, demo.bundle("fp16"))
    assert [has_one_head(found.given()) for found in find_attentions(rtx, network)] == [False] * 4


@pytest.mark.parametrize("mask_batch", [1, 3])
def test_the_swapped_attention_is_the_same(mask_batch: int) -> None:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((3, 1, length, 8), dtype=np.float32) for length in (4, 6, 6))
    mask = random.standard_normal((mask_batch, 1, 4, 6), dtype=np.float32)
    swapped = attention(*(array.swapaxes(0, 1) for array in (q, k, v, mask)))
    np.testing.assert_array_equal(swapped.reshape(4, 3, 8).swapaxes(0, 1), attention(q, k, v, mask))
