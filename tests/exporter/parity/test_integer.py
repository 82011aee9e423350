"""Every MatMul of int8 by int8 equals numpy's integers, on whatever CPU runs this, and in the form that others get."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.exports import GATED, RELU, Exports
from support.saturation import saturating_sums
from t5edge.bundle.manifest import read_manifest
from t5edge.parity import integer
from t5edge.parity.blockwise.segments import CutGraph
from t5edge.parity.integer import integer_matmuls
from t5edge.runtime.model import load
from t5edge.runtime.onnxruntime import arithmetic
from t5edge.runtime.onnxruntime.arithmetic import FLOAT, SIGNED, UNSIGNED

MODELS = (GATED, RELU, "ul2-twin", "byt5-twin", "mt5-twin", "umt5-twin")
IDS = np.random.default_rng(0).integers(3, 90, (2, 24))
OLD = Path(__file__).parents[2] / "bundles-0.1" / "byt5-int8"
PRECISION_ENTRY = "session.x64quantprecision"
UNDER_QEMU = """
import json, sys
from pathlib import Path
import numpy as np
from t5edge.bundle.manifest import read_manifest
from t5edge.parity.integer import integer_matmuls
from t5edge.runtime.onnxruntime.cpu import session_entries
folder, ids = Path(sys.argv[1]), np.array(json.loads(sys.argv[2]))
for entries in (session_entries(read_manifest(folder), "encoder"), None):
    found, _ = integer_matmuls(folder, ids, entries)
    print(sum(one.exact for one in found), len(found), max(one.relative for one in found))
"""


def check(folder: Path, matrices: int) -> None:
    """All MatMuls of the encoder are exact: as chosen for this CPU, and as chosen where signed weights saturate."""
    for entries in (None, UNSIGNED.entries, FLOAT.entries):
        found, way = integer_matmuls(folder, IDS, entries)
        assert way is None or way.exact
        assert len(found) == matrices
        assert [one for one in found if not one.exact] == []


def matrices(folder: Path) -> int:
    sites = read_manifest(folder)["quantization"]["sites"]
    return sum(site["graph"] == "encoder" and not site["kept"] and site.get("scale") is not None for site in sites)


@pytest.mark.parametrize("name", MODELS[:2])
def test_every_matmul_equals_numpys_integers(exports: Exports, name: str) -> None:
    folder = exports.bundle(name, "int8")
    assert matrices(folder) > 10
    check(folder, matrices(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS[2:])
def test_every_matmul_of_the_other_families_equals_numpys_integers(exports: Exports, name: str) -> None:
    folder = exports.bundle(name, "int8")
    assert matrices(folder) > 10
    check(folder, matrices(folder))


def test_a_bundle_of_the_first_format_is_exact_too() -> None:
    check(OLD, 26)


def test_a_sum_that_saturates_is_found() -> None:
    """With the smallest damage that 16 bits can do: one pair of one column, one step too large."""
    x, weight = np.zeros((3, 8)), np.zeros((8, 4), np.int8)
    x[1, :2], weight[:2, 2] = 127 - 128 * 0, (65, 64)
    unsigned = (x[1, 0] + 128) * (65 + 64)
    assert unsigned - 2**15 > 0
    value = integer.ir.Value
    site = integer._Site("m", value(name="x"), value(name="y"), np.float32(0.5), weight, np.full(4, 0.1, np.float32))
    step = np.float32(0.5) * np.float32(0.1)
    exact = (x @ weight).astype(np.float32) * step
    saturated = saturating_sums(x, weight).astype(np.float32) * step
    for y, expected in ((exact, True), (saturated, False), (exact + step, False)):
        assert integer._compare(site, {"x": x * 0.5, "y": y}).exact is expected


def test_a_bundle_runs_in_the_form_that_this_cpu_needs(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """And verify judges it: the ladder opens bundles as everybody does."""
    folder = exports.bundle(GATED, "int8")
    mask, target = np.ones_like(IDS), np.zeros((2, 3), np.int64)
    expected = load(folder).logits(IDS, mask, target)
    monkeypatch.setattr(arithmetic, "exact_ways", lambda: (UNSIGNED, FLOAT))
    model = load(folder)
    assert model.arithmetic is UNSIGNED
    options = model.step_model.encoder.get_session_options()
    recorded = read_manifest(folder)["session"]["encoder"]
    assert {key: options.get_session_config_entry(key) for key in recorded} == recorded
    assert options.get_session_config_entry(PRECISION_ENTRY) == "1"
    np.testing.assert_array_equal(model.logits(IDS, mask, target), expected)
    judged = exports.subject(GATED, "int8", "3 logits").model
    assert judged.arithmetic is UNSIGNED


def test_blocks_that_are_verified_alone_run_in_that_form_too(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(arithmetic, "exact_ways", lambda: asked.append(1) or (UNSIGNED, FLOAT))
    folder = exports.bundle(GATED, "int8")
    for name, expected in (("encoder", 1), ("decoder", 1)):
        graph = CutGraph(folder, name, "float", 0)  # type: ignore[arg-type]
        hidden = np.ones((1, 4, read_manifest(folder)["architecture"]["d_model"]), np.float32)
        graph.run({graph.sublayers[0][-1].hidden: hidden}, [graph.sublayers[0][-1].out])
        assert len(asked) == expected, "the decoder rounds no activations"


@pytest.mark.parametrize("precision", ["fp32", "int8-weight"])
def test_other_precisions_multiply_no_integers(demo: object, exports: Exports, precision: str) -> None:
    assert load(exports.bundle(GATED, precision)).arithmetic is None


def test_matrices_that_stay_in_float32_do_no_harm(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantization gate keeps some: those MatMuls have no QuantizeLinear, and the rest is exact."""
    folder = keep_first(exports.bundle(GATED, "int8"), tmp_path / "kept")
    found, _ = integer_matmuls(folder, IDS)
    check(folder, len(found))
    assert len(found) == matrices(exports.bundle(GATED, "int8")) - 1
    monkeypatch.setattr(arithmetic, "exact_ways", lambda: (UNSIGNED, FLOAT))
    assert load(folder).arithmetic is UNSIGNED


def keep_first(bundle: Path, out: Path) -> Path:
    """A copy whose first quantized MatMul of the encoder multiplies in float32."""
    ir = integer.ir
    shutil.copytree(bundle, out)
    model = ir.load(out / "encoder.onnx")
    node = next(node for node in model.graph if node.op_type == "MatMul")
    rounded, weight = (value.producer() for value in node.inputs)
    values, scales = (value.const_value.numpy() for value in weight.inputs[:2])
    full = ir.tensor(values.astype(np.float32) * scales, name="kept")
    kept = ir.Value(name="kept", const_value=full, type=ir.TensorType(full.dtype), shape=full.shape)
    model.graph.register_initializer(kept)
    node.replace_input_with(0, rounded.inputs[0].producer().inputs[0])
    node.replace_input_with(1, kept)
    model.graph.remove([rounded, rounded.inputs[0].producer(), weight], safe=True)
    ir.save(model, out / "encoder.onnx")
    return out


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user: apt install qemu-user")
@pytest.mark.slow
def test_an_emulated_haswell_saturates_as_recorded_and_is_exact_as_chosen() -> None:
    command = [str(shutil.which("qemu-x86_64")), "-cpu", "Haswell", sys.executable, "-c", UNDER_QEMU]
    done = subprocess.run([*command, str(OLD), json.dumps(IDS.tolist())], capture_output=True, text=True, check=True)
    recorded, chosen = (line.split() for line in done.stdout.splitlines())
    assert int(recorded[0]) < int(recorded[1])
    assert chosen == ["26", "26", "0.0"]


def test_signed_weights_are_the_first_choice() -> None:
    assert arithmetic.WAYS[0] is SIGNED
    assert dict(SIGNED.entries) == {}
