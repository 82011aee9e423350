from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from support.quantized_models import Model
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import Precision, precision
from t5edge.engines.attention import attention_form
from t5edge.engines.builder import EngineSpec, build_engine, check_attention, engine_profiles
from t5edge.engines.guards import check_dtypes, dtypes_of
from t5edge.errors import UserError
from t5edge.progress import Silent
from t5edge.runtime.tensorrt.flavor import load_tensorrt

ROWS = ("int8", "int8-weight", "int4-weight")


def build(folder: Path, graph: str, capability: str) -> int:
    """Bytes of the engine that TensorRT-RTX makes of a bundle's graph; attention fused where it computes in 16 bits."""
    manifest = Manifest.read(folder)
    facts, compute = manifest.architecture, manifest.precision.compute
    form = attention_form(compute, facts.d_kv, no_fuse=False)
    assert form == ("fused" if compute == "float16" else "decomposable")
    ports = manifest.ports[graph]
    profiles = engine_profiles(manifest.limits, graph, form, facts.num_heads)
    spec = EngineSpec(folder / f"{graph}.onnx", ports, profiles, form, capability, compute == "float")
    built = build_engine(load_tensorrt("tensorrt-rtx"), spec, Silent())
    check_attention(spec, built)
    return built.plan.nbytes


@pytest.fixture(scope="session", params=ROWS)
def bundle(request: pytest.FixtureRequest, shallow: Model) -> Path:
    return made(shallow, precision(request.param))


@pytest.fixture(scope="session", params=ROWS)
def half(request: pytest.FixtureRequest, shallow: Model) -> Path:
    """The same rows, computing in float16."""
    return made(shallow, precision(request.param).computing("float16"))


def made(shallow: Model, row: Precision) -> Path:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    return shallow.bundle(f"engine-{row.name}-{row.compute}", row)[0]


def test_engines_build_for_ampere(bundle: Path) -> None:
    assert all(build(bundle, graph, "8.6") for graph in ("encoder", "decoder"))


def test_engines_in_float16_fuse_every_attention(half: Path) -> None:
    assert all(build(half, graph, "8.6") for graph in ("encoder", "decoder"))


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["8.0", "8.9", "12.0", "12.1"])
def test_engines_in_float16_fuse_every_attention_on_the_other_generations(half: Path, capability: str) -> None:
    assert all(build(half, graph, capability) for graph in ("encoder", "decoder"))


def test_turing_takes_eight_bits_in_float16(shallow: Model) -> None:
    folder = made(shallow, precision("int8").computing("float16"))
    assert all(build(folder, graph, "7.5") for graph in ("encoder", "decoder"))


def test_turing_refuses_four_bits(shallow: Model) -> None:
    folder = made(shallow, precision("int4-weight").computing("float16"))
    dtypes = dtypes_of(Manifest.read(folder), [folder / "decoder.onnx"])
    assert "int4" in dtypes
    with pytest.raises(UserError, match="no 4-bit weights for Turing"):
        check_dtypes(load_tensorrt("tensorrt-rtx").flavor, ["7.5"], dtypes)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["8.0", "8.9", "12.0"])
def test_engines_build_for_the_other_generations(bundle: Path, capability: str) -> None:
    assert all(build(bundle, graph, capability) for graph in ("encoder", "decoder"))
