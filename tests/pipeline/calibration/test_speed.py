from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import t5edge
from support.quantized_models import Model
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import ParityReport, at_most
from t5edge.bundle.precision import precision
from t5edge.bundle.records import Speed, Times
from t5edge.calibration import speed
from t5edge.calibration.plan import Settings
from t5edge.errors import GateError
from t5edge.progress import Silent
from t5edge.runtime.onnxruntime.model import OnnxRuntimeModel

SLOW = Speed(64, 16, 2, Times(4.0, 2.0), Times(3.0, 1.0), encoder_speedup=0.75, step_speedup=0.5, speedup=0.6)


@pytest.fixture(scope="module")
def bundle(plain: Model) -> Path:
    return plain.bundle("speed", precision("int8"), Settings(gate=False))[0]


def test_both_sides_are_timed(bundle: Path) -> None:
    found = speed.measure_speed(bundle, Manifest.read(bundle))
    assert found is not None
    assert all(time > 0 for side in (found.quantized, found.fp32) for time in (side.encoder_ms, side.step_ms))
    assert found.encoder_speedup == found.fp32.encoder_ms / found.quantized.encoder_ms


def test_the_float32_side_has_no_rounded_inputs_left(bundle: Path, plain: Model) -> None:
    model = ir.load(bundle / "encoder.onnx")
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph)
    assert speed.bridge_inputs(model) == pairs > 0
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph)
    sessions = [speed._float32(bundle, Manifest.read(bundle), name) for name in ("encoder", "decoder")]
    exact = OnnxRuntimeModel(*sessions, Manifest.read(bundle).ports["decoder"])
    batch = plain.texts.gate
    hidden = exact.hidden_and_cross(batch.input_ids, batch.attention_mask)["last_hidden_state"]
    assert np.isfinite(hidden).all()


def test_a_model_too_large_for_this_machine_is_not_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_memory", lambda: 1000)
    assert speed.measure_speed(bundle, Manifest.read(bundle)) is None
    assert speed.verdict(None) is None


def test_a_part_that_is_slower_is_told_though_the_whole_is_faster() -> None:
    found = replace(SLOW, quantized=Times(9.0, 1.0), fp32=Times(6.0, 2.0), speedup=1.52)
    said = speed.verdict(found)
    assert said is not None
    assert said.startswith("in part slower than float32 on this machine's CPU (encoder 9.0 ms against 6.0 ms;")
    assert "1.5x faster" in said
    assert "decoder step" not in said
    assert speed.verdict(replace(found, quantized=Times(6.1, 1.0))) is None, "noise"
    assert "fp32 or another quantized precision" in str(speed.verdict(replace(found, speedup=0.9)))


def test_a_bundle_in_float16_is_not_timed_on_the_cpu(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    half = replace(manifest, precision=manifest.precision.computing("float16"))
    assert speed.measure_speed(bundle, half) is None


def test_a_slower_encoder_warns_and_the_export_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Model
) -> None:
    partly = replace(SLOW, fp32=Times(3.0, 3.0), speedup=1.4)
    monkeypatch.setattr("t5edge.pipeline.measure_speed", lambda *_: partly)
    passed = ParityReport([at_most("3 logits", "mean KL (nats)", 0, 1)])
    monkeypatch.setattr("t5edge.pipeline.check_parity", lambda *_: passed)
    heard: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "message", heard.append)
    bundle = t5edge.export("t5-demo", "int8-weight", progress, out=tmp_path / "b", target=("onnxruntime",))
    assert bundle.passed is True
    assert any(text.startswith("warning: in part slower") for text in heard)


def test_require_speedup_fails_a_slower_bundle_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Model
) -> None:
    monkeypatch.setattr("t5edge.pipeline.measure_speed", lambda *_: SLOW)
    settings = {"out": tmp_path / "b", "target": ("onnxruntime",), "no_verify": True}
    assert t5edge.export("t5-demo", "int8-weight", **settings).manifest.speed is None
    with pytest.raises(GateError, match=r"encoder 4.0 ms against 3.0 ms.*b\.failed"):
        t5edge.export("t5-demo", "int8-weight", **settings, force=True, require_speedup=True)
    assert (tmp_path / "b.failed" / "bundle.json").is_file()
    assert (tmp_path / "b" / "bundle.json").is_file()  # what --force would have replaced
    monkeypatch.setattr("t5edge.pipeline.measure_speed", lambda *_: replace(SLOW, speedup=1.4))
    assert t5edge.export("t5-demo", "int8-weight", **settings, force=True, require_speedup=True).folder.is_dir()


def test_a_float_bundle_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Model) -> None:
    bundle = t5edge.export(
        "t5-demo", "fp32", out=tmp_path / "f", target=("onnxruntime",), no_verify=True, require_speedup=True
    )
    assert bundle.manifest.speed is None
    assert bundle.manifest.quantization is None
