from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Workshop
from support.gpus import NO_GPU
from support.manifests import engine_record
from t5edge.bundle.engine_record import EngineRecord
from t5edge.bundle.manifest import Manifest
from t5edge.engines.guards import capability_key, check_dtypes, check_sources, choose_capabilities, dtypes_of
from t5edge.errors import UserError
from t5edge.runtime.gpu import Gpu, GpuReport
from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT
from t5edge.runtime.tensorrt.guards import check_engine

RTX, FULL = FLAVORS["tensorrt-rtx"], FLAVORS["tensorrt"]
ADA = GpuReport((Gpu("NVIDIA Test 4090", "8.9", "13.0"),))


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_gpus_of_the_machine_are_the_default() -> None:
    assert choose_capabilities(RTX, (), ADA) == ("8.9",)
    assert choose_capabilities(FULL, (), ADA) == ("8.9",)


def test_a_gpu_that_cannot_be_built_for_does_not_stop_the_others() -> None:
    both = GpuReport((Gpu("NVIDIA Test H100", "9.0", "13.0"), *ADA.gpus))
    assert choose_capabilities(RTX, (), both) == ("8.9",)
    assert "Hopper" in refusal(choose_capabilities, RTX, (), GpuReport(both.gpus[:1]))


def test_several_can_be_asked_for_without_a_gpu() -> None:
    assert choose_capabilities(RTX, ("8.6", "12.0", "8.6"), NO_GPU) == ("8.6", "12.0")


def test_without_a_gpu_rtx_needs_to_be_told() -> None:
    assert refusal(choose_capabilities, RTX, (), NO_GPU) == (
        "no GPU: none in this test, so --compute-capability must say what tensorrt-rtx engines are for: "
        "one or more of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1."
    )


@pytest.mark.parametrize(
    ("capability", "says"),
    [
        ("8.7", "Jetson Orin: build on the device with --target tensorrt"),
        ("9.0", "Hopper: build on the machine with --target tensorrt"),
        ("11.0", "Jetson Thor: build on the device with --target tensorrt"),
        ("10.0", "data-center Blackwell"),
        ("12.5", "the nearest is 12.1, all: 7.5, 8.0"),
        ("7.0", "it begins with 7.5 (Turing)"),
    ],
)
def test_what_rtx_cannot_target_is_refused_with_the_nearest_that_works(capability: str, says: str) -> None:
    text = refusal(choose_capabilities, RTX, (capability,), NO_GPU)
    assert f"tensorrt-rtx cannot target compute capability {capability}" in text
    assert says in text


def test_every_wrong_capability_is_reported_at_once() -> None:
    text = refusal(choose_capabilities, RTX, ("8.7", "8.6", "9.0"), NO_GPU)
    assert "8.7" in text
    assert "9.0" in text


@pytest.mark.parametrize("text", ["86", "sm_86", "8.6.1", ""])
def test_a_capability_is_written_like_8_6(text: str) -> None:
    assert "write it like 8.6" in refusal(capability_key, text)


def test_full_tensorrt_builds_on_the_device_only() -> None:
    assert "--target tensorrt-rtx builds without a GPU" in refusal(choose_capabilities, FULL, ("8.9",), NO_GPU)
    text = refusal(choose_capabilities, FULL, ("8.6",), ADA)
    assert "tensorrt builds for the GPU in the machine, compute capability 8.9, not for 8.6" in text


@pytest.mark.parametrize(
    ("flavor", "capability", "dtype", "says"),
    [
        (RTX, "7.5", "bfloat16", "bfloat16 arithmetic begins with Ampere (8.0); export in fp16"),
        (FULL, "7.5", "bfloat16", "bfloat16 arithmetic begins with Ampere (8.0); export in fp16"),
        (RTX, "7.5", "int4", "no 4-bit weights for Turing (8.0); export in int8-weight or fp16"),
        (RTX, "7.5", "float", "no float32 matrix product for Turing (8.0); export in fp16"),
        (RTX, "8.6", "float8e4m3fn", "FP8 arithmetic begins with Ada (8.9); export in int8 or fp16"),
        (FULL, "8.7", "float8e4m3fn", "FP8 arithmetic begins with Ada (8.9)"),
    ],
)
def test_dtypes_that_a_gpu_lacks_are_refused(flavor: Any, capability: str, dtype: str, says: str) -> None:
    text = refusal(check_dtypes, flavor, [capability], {dtype})
    assert f"{flavor.target} cannot build {dtype} for compute capability {capability}" in text
    assert says in text


def test_dtypes_that_a_gpu_has_pass() -> None:
    check_dtypes(RTX, ["7.5"], {"float16"})
    check_dtypes(FULL, ["7.5"], {"float"})
    check_dtypes(RTX, ["8.0", "12.1"], {"float", "float16", "bfloat16"})
    check_dtypes(RTX, ["8.9"], {"float8e4m3fn"})


def test_dtypes_are_read_from_the_graphs(demo: Workshop) -> None:
    folder = demo.bundle("bf16")
    manifest = Manifest.read(folder)
    assert dtypes_of(manifest, [folder / "encoder.onnx"]) == {"bfloat16", "int64"}


def test_a_changed_source_is_refused(demo: Workshop, tmp_path: Path) -> None:
    folder = demo.fresh(tmp_path / "bundle", "fp16")
    manifest = Manifest.read(folder)
    check_sources(folder, manifest, ["encoder.onnx", "weights.safetensors"])
    (folder / "encoder.onnx").write_bytes(b"other")
    assert "not the file the bundle was exported with" in refusal(check_sources, folder, manifest, ["encoder.onnx"])


class FakeModule:
    __version__ = "1.7.1.116"


@pytest.fixture
def engine(demo: Workshop, tmp_path: Path) -> tuple[Path, EngineRecord, Manifest]:
    """A bundle, the record of an engine that fits it on a 8.9, and its manifest."""
    folder = demo.fresh(tmp_path / "bundle", "fp16")
    manifest = Manifest.read(folder)
    sources = {name: manifest.hashes[name] for name in ("decoder.onnx", "weights.safetensors")}
    record = engine_record(version="1.7.1.116", compute_capability="8.9", graph="decoder", sources=sources)
    return folder, record, manifest


def test_an_engine_that_fits_passes(engine: tuple[Path, EngineRecord, Manifest]) -> None:
    check_engine(*engine, TensorRT(RTX, FakeModule), ADA)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "1.6.0.1"}, "was built by tensorrt-rtx 1.6.0.1, here is 1.7.1.116"),
        ({"compute_capability": "8.6"}, "is for compute capability 8.6, here is NVIDIA Test 4090 with 8.9"),
        ({"sources": {"decoder.onnx": "0" * 64}}, "was built from another decoder.onnx than the bundle holds now"),
        ({"sources": {"weights.safetensors": "0" * 64}}, "was built from another weights.safetensors"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(
    engine: tuple[Path, EngineRecord, Manifest], change: dict[str, Any], says: str
) -> None:
    folder, record, manifest = engine
    text = refusal(check_engine, folder, replace(record, **change), manifest, TensorRT(RTX, FakeModule), ADA)
    assert says in text
    assert f"t5edge build '{folder}' --target tensorrt-rtx" in text


def test_an_engine_is_refused_after_the_onnx_file_changed(
    engine: tuple[Path, EngineRecord, Manifest],
) -> None:
    folder, record, manifest = engine
    (folder / "decoder.onnx").write_bytes(b"other")
    text = refusal(check_engine, folder, record, manifest, TensorRT(RTX, FakeModule), ADA)
    assert "was built from another decoder.onnx" in text
