from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from exporter.bundle import read_manifest
from exporter.ports import GraphPorts, Limits
from exporter.precision import precision
from exporter.progress import Silent
from exporter.targets.tensorrt_attention import attention_form
from exporter.targets.tensorrt_build import EngineSpec, build_engine, engine_profiles
from exporter.targets.tensorrt_flavor import load_tensorrt
from tests.calibration.models import Model

ROWS = ("int8", "int8-weight", "int4-weight")


def build(folder: Path, graph: str, capability: str) -> int:
    """Bytes of the engine that TensorRT-RTX makes of a bundle's graph."""
    manifest = read_manifest(folder)
    facts = manifest["architecture"]
    form = attention_form("float", facts["d_kv"], no_fuse=False)
    ports = GraphPorts.from_dict(manifest["ports"][graph])
    profiles = engine_profiles(Limits(**manifest["limits"]), graph, form, facts["num_heads"])
    spec = EngineSpec(folder / f"{graph}.onnx", ports, profiles, form, capability, True)
    return build_engine(load_tensorrt("tensorrt-rtx"), spec, Silent()).plan.nbytes


@pytest.fixture(scope="session", params=ROWS)
def bundle(request: pytest.FixtureRequest, demo: Model) -> Path:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    return demo.bundle(f"engine-{request.param}", precision(request.param))[0]


def test_engines_build_for_ampere(bundle: Path) -> None:
    assert all(build(bundle, graph, "8.6") for graph in ("encoder", "decoder"))


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["8.0", "8.9", "12.0"])
def test_engines_build_for_the_other_generations(bundle: Path, capability: str) -> None:
    assert all(build(bundle, graph, capability) for graph in ("encoder", "decoder"))
