from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import onnx
import pytest

from support.bundles import Workshop, tiny_workshop
from support.tiny_models import tiny_models
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import Limits
from t5edge.engines.attention import Form, attention_form, find_attentions
from t5edge.engines.builder import EngineSpec, build_engine, check_attention, engine_profiles
from t5edge.errors import GateError, UserError
from t5edge.progress import Silent, Stage
from t5edge.runtime.tensorrt.flavor import TensorRT
from t5edge.runtime.tensorrt.log import make_log

COMPUTE = {"fp32": "float", "fp16": "float16", "bf16": "bfloat16"}
GRAPHS = ("encoder", "decoder", "decoder_in_place")
FAMILY = [tiny.name for tiny in tiny_models()]


def spec_of(folder: Path, graph: str, capability: str = "8.6", form: Form | None = None) -> EngineSpec:
    manifest = Manifest.read(folder)
    compute = manifest.precision.compute
    facts = manifest.architecture
    chosen = form or attention_form(compute, facts.d_kv, no_fuse=False)
    return EngineSpec(
        folder / f"{graph}.onnx",
        manifest.ports[graph],
        engine_profiles(manifest.limits, graph, chosen, facts.num_heads),
        chosen,
        capability,
        compute == "float",
    )


def attentions_of(folder: Path, graph: str) -> int:
    nodes = onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph.node
    return sum(node.op_type == "Attention" for node in nodes)


def build_and_check(rtx: TensorRT, folder: Path, graph: str, capability: str) -> int:
    """Build, and hold the engine to its form; returns its bytes."""
    spec = spec_of(folder, graph, capability)
    built = build_engine(rtx, spec, Silent())
    check_attention(spec, built)
    assert built.attention.expected == attentions_of(folder, graph) * len(spec.profiles)
    if spec.form == "fused":
        assert built.attention.complete
    return built.plan.nbytes


def test_the_encoder_has_one_profile_and_the_decoder_a_step_and_a_prefill() -> None:
    limits = Limits(4, 64, 144)
    (encoder,) = engine_profiles(limits, "encoder", "fused", 8)
    assert (encoder["batch"], encoder["source"]) == ((1, 1, 4), (1, 64, 64))
    step, prefill = engine_profiles(limits, "decoder", "fused", 8)
    assert (step["target"], step["past"]) == ((1, 1, 1), (0, 32, 144))
    assert (prefill["target"], prefill["past"]) == ((1, 32, 144), (0, 0, 144))


def test_a_split_decoder_has_one_profile() -> None:
    (only,) = engine_profiles(Limits(4, 64, 144), "decoder", "split", 1)
    assert only["target"] == (1, 1, 144)


@pytest.mark.parametrize("limits", [Limits(1, 1, 1), Limits(2, 8, 16), Limits(8, 2048, 1024)])
def test_profiles_are_ordered_for_any_limits(limits: Limits) -> None:
    for graph, num_heads in product(GRAPHS, (1, 8)):
        profiles = engine_profiles(limits, graph, "fused", num_heads)
        assert len(profiles) == (1 if graph == "encoder" else 2)
        for profile in profiles:
            assert {"batch", "source"} <= profile.keys()
            for low, middle, high in profile.values():
                assert low <= middle <= high


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bit_engines_have_every_attention_fused(
    shallow: Workshop, rtx: TensorRT, precision: str, graph: str
) -> None:
    assert build_and_check(rtx, shallow.bundle(precision), graph, "8.9") > 0


def test_one_query_row_gets_its_own_kernel(shallow: Workshop, rtx: TensorRT) -> None:
    built = build_engine(rtx, spec_of(shallow.bundle("fp16"), "decoder"), Silent())
    assert built.attention.kernels == {"_gemm_mha_v2": 2, "_gemv_mha_v1": 2}


@pytest.mark.parametrize("graph", GRAPHS)
def test_float32_engines_build_decomposable(shallow: Workshop, rtx: TensorRT, graph: str) -> None:
    spec = spec_of(shallow.bundle("fp32"), graph)
    assert spec.form == "decomposable"
    build_and_check(rtx, shallow.bundle("fp32"), graph, "8.6")


@pytest.mark.parametrize("capability", ["7.5", "12.0", "12.1"])
def test_other_generations(shallow: Workshop, rtx: TensorRT, capability: str) -> None:
    build_and_check(rtx, shallow.bundle("fp16"), "decoder", capability)


@pytest.mark.parametrize("graph", GRAPHS)
def test_without_fusion_nothing_is_fused_and_the_fused_check_sees_it(
    shallow: Workshop, rtx: TensorRT, graph: str
) -> None:
    spec = spec_of(shallow.bundle("fp16"), graph, form="split")
    built = build_engine(rtx, spec, Silent())
    check_attention(spec, built)
    assert built.attention.fused == 0
    assert len(built.attention.decomposed) == attentions_of(shallow.bundle("fp16"), graph)
    with pytest.raises(GateError, match=r"0 of 2 attentions have a fused kernel \(without: .*Attention_\d+"):
        check_attention(replace(spec, form="fused"), built)


def test_a_fused_engine_does_not_pass_for_a_split_one(shallow: Workshop, rtx: TensorRT) -> None:
    spec = spec_of(shallow.bundle("fp16"), "encoder")
    built = build_engine(rtx, spec, Silent())
    with pytest.raises(GateError, match="the builder fused 2 attentions in spite of --no-fuse"):
        check_attention(replace(spec, form="split"), built)


@pytest.mark.usefixtures("no_collector")
def test_the_in_place_cache_becomes_cache_update_layers(demo: Workshop, rtx: TensorRT) -> None:
    trt, log = rtx.trt, make_log(rtx)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(demo.bundle("fp16") / "decoder_in_place.onnx"))
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(trt.LayerType.KV_CACHE_UPDATE) == 2 * demo.checkpoint.architecture.decoder_layers
    names = [entry.name for entry in find_attentions(rtx, network)]
    assert len(names) == 4
    assert all(name.startswith("decoder.block.") for name in names)


def test_a_graph_that_cannot_be_read_names_the_node_and_the_layer(
    demo: Workshop, rtx: TensorRT, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(demo.bundle("fp16"), tmp_path / "bundle"))
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name.startswith("decoder.block.1") and node.op_type == "Gelu")
    node.op_type = "Unheard"
    onnx.save(model, folder / "decoder.onnx")
    with pytest.raises(UserError) as caught:
        build_engine(rtx, spec_of(folder, "decoder"), Silent())
    text = str(caught.value)
    assert f"node '{node.name}' (Unheard, decoder layer 1)" in text
    assert "\n" not in text


def test_a_graph_that_cannot_be_built_names_the_node_and_the_layer(shallow: Workshop, rtx: TensorRT) -> None:
    with pytest.raises(UserError) as caught:
        build_engine(rtx, spec_of(shallow.bundle("fp32"), "encoder", "7.5"), Silent())
    text = str(caught.value)
    assert "cannot build encoder.onnx for compute capability 7.5 at node 'encoder.block.0.block/MatMul_" in text
    assert "(MatMul, encoder layer 0)" in text
    assert "\n" not in text


class Watching(Silent):
    """Looks at the garbage collector whenever the builder calls back."""

    def __init__(self) -> None:
        self.enabled: set[bool] = set()

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        yield self

    def advance(self, amount: int = 1) -> None:
        self.enabled.add(gc.isenabled())

    def note(self, text: str) -> None:
        self.enabled.add(gc.isenabled())


def test_no_garbage_is_collected_while_the_builder_calls_back(shallow: Workshop, rtx: TensorRT) -> None:
    """A builder in a cycle, collected inside a callback of another, waits for a lock for ever."""
    watching = Watching()
    build_engine(rtx, spec_of(shallow.bundle("fp16"), "encoder"), watching)
    assert watching.enabled == {False}
    assert gc.isenabled()
    with pytest.raises(UserError):
        build_engine(rtx, spec_of(shallow.bundle("fp32"), "encoder", "7.5"), watching)
    assert gc.isenabled()


def test_nothing_is_printed(shallow: Workshop, rtx: TensorRT, capfd: pytest.CaptureFixture[str]) -> None:
    build_engine(rtx, spec_of(shallow.bundle("fp16"), "encoder"), Silent())
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module", params=["t5-tiny", pytest.param("ul2-tiny", marks=pytest.mark.slow)])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """ReLU with d_kv 64, and gated SiLU with d_kv 256: the other two feed-forward forms."""
    return tiny_workshop(tmp_path_factory.mktemp(request.param), request.param)


def test_other_families_build_fused(tiny: Workshop, rtx: TensorRT) -> None:
    for graph in GRAPHS:
        build_and_check(rtx, tiny.bundle("fp16"), graph, "8.6")


@pytest.fixture(scope="module", params=FAMILY)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return tiny_workshop(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(COMPUTE))
def test_every_family_on_every_generation(member: Workshop, rtx: TensorRT, precision: str) -> None:
    for capability in rtx.flavor.compute_capabilities:
        if capability == "7.5" and precision != "fp16":
            continue  # refused before the build: test_guards
        for graph in GRAPHS:
            build_and_check(rtx, member.bundle(precision), graph, capability)


@pytest.mark.slow
@pytest.mark.parametrize("precision", list(COMPUTE))
def test_the_demo_on_every_generation(demo: Workshop, rtx: TensorRT, precision: str) -> None:
    for capability in rtx.flavor.compute_capabilities:
        if capability == "7.5" and precision != "fp16":
            continue
        for graph in GRAPHS:
            build_and_check(rtx, demo.bundle(precision), graph, capability)


def test_float32_keeps_float32(shallow: Workshop, rtx: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is the builder's default and would round float32 products to eleven bits."""
    from t5edge.engines import builder as tensorrt_build

    seen = []
    spec = spec_of(shallow.bundle("fp32"), "encoder")
    original = tensorrt_build._config

    def watched(tool: TensorRT, *arguments: object) -> object:
        config = original(tool, *arguments)  # type: ignore[arg-type]

        def called(builder: object, network: object) -> object:
            made = config(builder, network)
            seen.append(made)
            return made

        return called

    monkeypatch.setattr(tensorrt_build, "_config", watched)
    build_engine(rtx, spec, Silent())
    assert [made.get_flag(rtx.trt.BuilderFlag.TF32) for made in seen] == [False]
