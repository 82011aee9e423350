"""Every MatMul of int8 by int8 equals numpy's integers, on whatever CPU runs this, and in the form that others get."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.bundles import write_bundle
from support.exports import GATED, RELU, Exports, checks
from support.saturation import QEMU, needs_qemu, saturating_sums
from t5edge import pipeline
from t5edge.bundle.architecture import Stack
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import precision
from t5edge.calibration.activations import quantize_activations
from t5edge.calibration.quantize import quantize_weights
from t5edge.exporter.graph.rescale import Rescale
from t5edge.options import ExportOptions
from t5edge.parity.exact import integers
from t5edge.parity.exact.integers import integer_matmuls
from t5edge.parity.ladder import open_subject
from t5edge.parity.localize.segments import CutGraph
from t5edge.parity.subject import Opener
from t5edge.progress import Silent
from t5edge.runtime.model import load
from t5edge.runtime.onnxruntime import arithmetic
from t5edge.runtime.onnxruntime.arithmetic import FITTING, FLOAT, SIGNED, UNSIGNED, Arithmetic
from t5edge.runtime.onnxruntime.cpu import open as open_onnxruntime

MODELS = (GATED, RELU, "ul2-tiny", "byt5-tiny", "mt5-tiny", "umt5-tiny")
IDS = np.random.default_rng(0).integers(3, 90, (2, 24))
OLD = Path(__file__).parents[3] / "bundles-0.1" / "byt5-int8"
PRECISION_ENTRY = "session.x64quantprecision"
UNDER_QEMU = """
import json, sys
from pathlib import Path
import numpy as np
from t5edge.bundle.manifest import Manifest
from t5edge.parity.exact.integers import integer_matmuls
from t5edge.runtime.onnxruntime.cpu import session_entries
folder, ids = Path(sys.argv[1]), np.array(json.loads(sys.argv[2]))
for entries in (session_entries(Manifest.read(folder), "encoder"), None):
    found, _ = integer_matmuls(folder, ids, entries)
    print(sum(one.exact for one in found), len(found), max(one.relative for one in found))
"""


@pytest.fixture(scope="module")
def relu(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8 bundle with guessed input scales: integers are exact whatever the scales, and calibration is slow."""
    folder = tmp_path_factory.mktemp("relu") / "int8"
    folder.mkdir()
    checkpoint, row, options = exports.checkpoint(RELU), precision("int8"), ExportOptions(RELU, "int8")
    graphs = pipeline.assemble_graphs(checkpoint, exports.blocks(checkpoint), row, Rescale(), options.form)
    for name, model in graphs.items():
        keys = quantize_weights(model, row)
        quantize_activations(model, dict.fromkeys(keys, 0.05) if name == "encoder" else {})
    parts = pipeline.Parts(checkpoint, exports.blocks(checkpoint), Rescale(), graphs, None)
    return write_bundle(parts, row, options, folder)


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CPU on which signed weights are not exact; who asks is noted."""
    asked: list[str] = []

    def exact_ways() -> tuple[Arithmetic, ...]:
        asked.append("")
        return UNSIGNED, FLOAT

    monkeypatch.setattr(arithmetic, "exact_ways", exact_ways)
    return asked


def check(folder: Path) -> int:
    """All MatMuls of the encoder are exact: as chosen for this CPU, and as chosen where signed weights saturate."""
    counts = set()
    for entries in (None, UNSIGNED.entries, FLOAT.entries):
        found, way = integer_matmuls(folder, IDS, entries)
        assert way is None or way.exact
        assert [one for one in found if not one.exact] == []
        counts.add(len(found))
    (count,) = counts
    return count


def test_every_matmul_equals_numpys_integers(relu: Path) -> None:
    architecture = Manifest.read(relu).architecture
    assert check(relu) == 4 * architecture.encoder_layers + architecture.decoder_layers


def test_every_matmul_of_a_gated_model_of_the_first_format_equals_numpys_integers() -> None:
    assert check(OLD) == 26


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_matmul_of_a_calibrated_bundle_equals_numpys_integers(exports: Exports, name: str) -> None:
    folder = exports.bundle(name, "int8")
    sites = [site for site in (Manifest.read(folder).quantization or {})["sites"] if site["graph"] == "encoder"]
    assert check(folder) == sum(not site["kept"] for site in sites if site["name"] != "embedding")


def test_a_calibrated_bundle_is_exact_on_every_cpu_as_it_is(exports: Exports, saturating: list[str]) -> None:
    """Nobody is asked how this CPU multiplies, and inputs at the ends of their range do not saturate."""
    folder = exports.bundle(GATED, "int8")
    model = load(folder, check=False)
    assert model.arithmetic is FITTING
    assert not saturating
    signs = np.random.default_rng(0)
    for site in integers._sites(integers.ir.load(folder / "encoder.onnx").graph):
        x = signs.choice([-128, 127], (4, len(site.weight)))
        x[:2] = [[127], [-128]]
        np.testing.assert_array_equal(saturating_sums(x, site.weight), x @ site.weight.astype(np.int64))


def test_a_sum_that_saturates_is_found() -> None:
    """With the smallest damage that 16 bits can do: one pair of one column, one step too large."""
    x, weight = np.zeros((3, 8)), np.zeros((8, 4), np.int8)
    x[1, :2], weight[:2, 2] = 127, (65, 64)
    unsigned = (x[1, 0] + 128) * (65 + 64)
    assert unsigned - 2**15 > 0
    value = integers.ir.Value
    site = integers._Site("m", value(name="x"), value(name="y"), np.float32(0.5), weight, np.full(4, 0.1, np.float32))
    step = np.float32(0.5) * np.float32(0.1)
    exact = (x @ weight).astype(np.float32) * step
    saturated = saturating_sums(x, weight).astype(np.float32) * step
    for y, expected in ((exact, True), (saturated, False), (exact + step, False)):
        assert integers._compare(site, {"x": x * 0.5, "y": y}, np.ones(3, bool)).exact is expected


def test_a_bundle_runs_in_the_form_that_this_cpu_needs(saturating: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mask, target = np.ones_like(IDS), np.zeros((2, 3), np.int64)
    model = load(OLD)
    assert model.arithmetic is UNSIGNED
    options = model.step_model.encoder.get_session_options()
    recorded = (Manifest.read(OLD).session or {})["encoder"]
    assert {key: options.get_session_config_entry(key) for key in recorded} == recorded
    assert options.get_session_config_entry(PRECISION_ENTRY) == "1"
    logits = model.logits(IDS, mask, target)
    monkeypatch.undo()
    np.testing.assert_array_equal(load(OLD).logits(IDS, mask, target), logits)


def test_verify_judges_what_runs(exports: Exports, relu: Path, saturating: list[str]) -> None:
    checkpoint = exports.checkpoint(RELU)
    opener = Opener(relu, Manifest.read(relu), "onnxruntime")
    subject = open_subject(opener, checkpoint, Silent(), exports.blocks(checkpoint), checks("3 logits"))
    assert subject.model.arithmetic is UNSIGNED


@pytest.mark.parametrize(("stack", "asks"), [("encoder", 1), ("decoder", 0)])
def test_blocks_that_are_verified_alone_run_in_that_form_too(stack: Stack, asks: int, saturating: list[str]) -> None:
    graph = CutGraph(OLD, stack, "float", 0)
    hidden = np.ones((1, 4, Manifest.read(OLD).architecture.d_model), np.float32)
    last = graph.sublayers[0][-1]
    graph.run({last.hidden: hidden}, [last.out])
    assert len(saturating) == asks, "the decoder rounds no activations"


def test_other_precisions_multiply_no_integers() -> None:
    manifest = Manifest.read(OLD)
    for changes in ({"activations": ()}, {"compute": "float16"}):
        changed = replace(manifest, precision=replace(manifest.precision, **changes))
        assert open_onnxruntime(OLD, changed).arithmetic is None


def test_matrices_that_stay_in_float32_do_no_harm(tmp_path: Path, saturating: list[str]) -> None:
    """The quantization gate keeps some: those MatMuls have no QuantizeLinear, and the rest is exact."""
    folder = keep_first(OLD, tmp_path / "kept")
    assert check(folder) == 25
    assert load(folder, check=False).arithmetic is UNSIGNED


def keep_first(bundle: Path, out: Path) -> Path:
    """A copy whose first quantized MatMul of the encoder multiplies in float32."""
    ir = integers.ir
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


@needs_qemu
@pytest.mark.slow
def test_an_emulated_haswell_saturates_as_recorded_and_is_exact_as_chosen() -> None:
    command = [str(QEMU), "-cpu", "Haswell", sys.executable, "-c", UNDER_QEMU]
    done = subprocess.run([*command, str(OLD), json.dumps(IDS.tolist())], capture_output=True, text=True, check=True)
    recorded, chosen = (line.split() for line in done.stdout.splitlines())
    assert int(recorded[0]) < int(recorded[1])
    assert chosen == ["26", "26", "0.0"]


def test_signed_weights_are_the_first_choice() -> None:
    assert arithmetic.WAYS[0] is SIGNED
    assert dict(SIGNED.entries) == {}
