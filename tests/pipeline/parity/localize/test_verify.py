"""Errors in single layers are found and named; sound bundles pass; nothing but one layer is ever loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from support.deep_models import LAYERS, Exported
from support.exports import fix_hashes
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import cli
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import CheckResult, condense
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.graph import trace
from t5edge.parity import ladder
from t5edge.parity.localize import locate
from t5edge.parity.subject import Opener
from t5edge.pipeline import export
from t5edge.progress import Silent

LAYER = 17
Weights = dict[str, np.ndarray]


def verify(made: Exported) -> list[CheckResult]:
    return locate(Opener(made.bundle, Manifest.read(made.bundle), "onnxruntime"), open_checkpoint(str(made.checkpoint)))


def failures(results: list[CheckResult]) -> set[tuple[str, str]]:
    return {(result.name, result.measure.partition(", ")[2]) for result in results if result.verdict == "fail"}


def transpose_head(weights: Weights, d_kv: int = 64) -> tuple[str, str]:
    """One head of the queries, transposed in place."""
    name = next(n for n in weights if n.startswith(f"T(encoder.block.{LAYER}.layer.0.SelfAttention.q"))
    head = weights[name][:, d_kv : 2 * d_kv]
    weights[name][:, d_kv : 2 * d_kv] = head.T.reshape(head.shape)
    return f"encoder block {LAYER}", "self-attention"


def swap_gate(weights: Weights, layer: int = LAYER) -> tuple[str, str]:
    name = next(n for n in weights if n.startswith(f"T(decoder.block.{layer}.layer.2.DenseReluDense.wi_0"))
    gate, up = np.split(weights[name].copy(), 2, axis=1)
    weights[name][:] = np.concatenate([up, gate], axis=1)
    return f"decoder block {layer}", "feed-forward"


def shift_bias(weights: Weights) -> tuple[str, str]:
    """The distance table off by one."""
    name = next(n for n in weights if n.startswith(f"distance(encoder.block.{LAYER}."))
    weights[name][:] = np.roll(weights[name], 1, axis=1)
    return "encoder stem", f"position bias {LAYER}"


def swap_cross(weights: Weights) -> tuple[str, str]:
    """Keys and values of cross-attention in each other's place: both halves are wrong."""
    name = next(n for n in weights if n.startswith(f"T(decoder.block.{LAYER}.layer.1.EncDecAttention.k"))
    keys, values = np.split(weights[name].copy(), 2, axis=1)
    weights[name][:] = np.concatenate([values, keys], axis=1)
    return f"decoder block {LAYER}", "cross keys"


def scale_output(weights: Weights) -> tuple[str, str]:
    """Cross-attention's output a tenth too large."""
    name = next(n for n in weights if n.startswith(f"T(decoder.block.{LAYER}.layer.1.EncDecAttention.o"))
    weights[name][:] *= 1.1
    return f"decoder block {LAYER}", "cross-attention"


def test_errors_of_layer_17_of_24_are_found_and_named(exported: Callable[..., Exported], tmp_path: Path) -> None:
    broken = exported().copy(tmp_path / "broken")
    weights = broken.weights()
    injected = {inject(weights) for inject in (transpose_head, swap_gate, shift_bias, swap_cross, scale_output)}
    injected.add((f"decoder block {LAYER}", "cross values"))
    del weights
    results = verify(broken)
    assert failures(results) == injected
    parts = {result.name for result in results}
    assert {f"decoder block {layer}" for layer in range(LAYERS)} < parts
    assert len(condense(results)) < 25 < len(results)
    assert failures(condense(results)) == injected


def test_the_command_compares_block_by_block(
    exported: Callable[..., Exported],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sound bundle passes; an error makes exit 1, a line in the table and a failure in the JUnit file."""
    sound = exported(layers=3)
    blocks = trace.trace_blocks(open_checkpoint(str(sound.checkpoint)), Silent())
    monkeypatch.setattr(trace, "trace_blocks", lambda *_: blocks)
    command = ["verify", "--blockwise", "--checkpoint", str(sound.checkpoint)]
    assert cli.main([*command, str(sound.bundle)]) == 1
    assert "--allow-not-run" in capsys.readouterr().err
    assert cli.main([*command, str(sound.bundle), "--json", "--allow-not-run", "generation", "graphs"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["blockwise"]
    assert not report["passed"]
    assert [entry["name"] for entry in report["not_run"]] == ["graphs", "7 generation"]
    assert {rung["verdict"].partition(":")[0] for rung in report["rungs"]} == {"pass", "not run", "not applicable"}
    broken = sound.copy(tmp_path / "broken")
    weights = broken.weights()
    name, _measure = swap_gate(weights, layer=1)
    del weights
    _accept_changes(broken.bundle)
    junit = tmp_path / "blocks.xml"
    assert cli.main([*command, str(broken.bundle), "--junit", str(junit)]) == 1
    shown = capsys.readouterr().out
    assert name in shown
    assert shown.count("decoder block") < 10
    failed = [
        case.get("name", "") for case in ElementTree.parse(junit).iter("testcase") if case.find("failure") is not None
    ]
    assert any(case.startswith("3 logits:") for case in failed)
    checks = tuple(check.name for check in ladder.CHECKS)
    assert [case.startswith(f"{name}:") for case in failed if not case.startswith(checks)] == [True]


def _accept_changes(folder: Path) -> None:
    """Make the manifest's hashes those of the files as they are now."""
    fix_hashes(folder)


@pytest.mark.slow
def test_export_verifies_block_by_block(tmp_path: Path) -> None:
    """On request; the manifest says which checks ran that way."""
    checkpoint = save_tiny_model(find_tiny_model("t5-tiny"), tmp_path / "checkpoint", seed=0)
    made = export(str(checkpoint), "fp16", out=tmp_path / "bundle", target=("onnxruntime",), blockwise=True)
    assert made.manifest.parity is not None
    assert made.manifest.parity.verdict == "passed except what was not run"
    assert not made.passed
    assert made.manifest.parity.facts["blockwise"]
    with pytest.raises(UserError, match="--blockwise"):
        export("t5-demo", blockwise=True, no_verify=True)


def test_single_blocks_run_on_onnxruntime_only(exported: Callable[..., Exported]) -> None:
    with pytest.raises(UserError, match="onnxruntime only"):
        ladder.verify(exported().bundle, target="tensorrt-rtx", blockwise=True)


def test_another_architecture_is_refused(exported: Callable[..., Exported], tmp_path: Path) -> None:
    from support.tiny_models import find_tiny_model, save_tiny_model

    other = save_tiny_model(find_tiny_model("umt5-tiny"), tmp_path / "other", seed=0)
    with pytest.raises(UserError, match="decoder_layers: bundle 24, checkpoint 2"):
        ladder.verify(exported().bundle, other, blockwise=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8-weight", "int4-weight"])
@pytest.mark.parametrize("name", ["v1.1-tiny", "t5-tiny", "umt5-tiny"])
def test_every_precision_passes_when_sound(exported: Callable[..., Exported], name: str, precision: str) -> None:
    assert not failures(verify(exported(name, precision)))


@pytest.mark.slow
@pytest.mark.parametrize("inject", [transpose_head, swap_gate, shift_bias, swap_cross, scale_output])
def test_one_error_in_fp16(
    exported: Callable[..., Exported], tmp_path: Path, inject: Callable[[Weights], tuple[str, str]]
) -> None:
    broken = exported("umt5-tiny", "fp16").copy(tmp_path / "broken")
    weights = broken.weights()
    expected = {inject(weights)}
    if inject is swap_cross:
        expected.add((f"decoder block {LAYER}", "cross values"))
    del weights
    assert failures(verify(broken)) == expected


MEMORY = """
import re, resource, sys, threading, time
from pathlib import Path
from t5edge.bundle.manifest import Manifest
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.parity.ladder import run_ladder, CHECKS
from t5edge.parity.localize import locate
from t5edge.parity.subject import Opener
from t5edge.progress import Silent

peak = 0

def watch():
    global peak
    while True:
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
        time.sleep(0.01)

folder, checkpoint = Path(sys.argv[1]), open_checkpoint(sys.argv[2], random_weights=0)
opener = Opener(folder, Manifest.read(folder), "onnxruntime", mapped=True)
results = locate(opener, checkpoint)
located = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
threading.Thread(target=watch, daemon=True).start()
results += run_ladder(opener, checkpoint, Silent(), CHECKS).results
assert not [result for result in results if result.verdict == "fail"], results
print(located, peak)
"""


def peak_bytes(bundle: Path, variant: str) -> list[int]:
    """Of a process that verifies one bundle: resident while layers are compared, anonymous during the whole ladder.

    What is mapped from a file does not count in the latter: the system takes it back when memory is short.
    """
    command = [sys.executable, "-c", MEMORY, str(bundle), variant]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [int(number) for number in shown.split()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """A model of 48 wide layers takes hardly more than one of 6: weights of 1.1 GB more, memory of 0.1 GB at most."""
    from t5edge.exporter.family.variants import find_variant
    from t5edge.pipeline import export

    peaks = []
    for layers in (6, 48):
        variant = f"t5-efficient-small-nl{layers}"
        assert find_variant(variant).architecture.encoder_layers == layers
        bundle = export(variant, "fp32", out=tmp_path / variant, random_weights=0, no_verify=True)
        peaks.append(peak_bytes(bundle.folder, variant))
    assert peaks[1][0] < peaks[0][0] + 100e6, peaks
    assert peaks[1][1] < peaks[0][1] + 100e6, peaks
