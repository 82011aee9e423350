from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.bundles import Workshop
from support.exports import RELU, Exports
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import cli

ROOT = Path(__file__).parents[2]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_tiny_model(find_tiny_model("t5-tiny"), tmp_path / "checkpoint", seed=0)


def spoil(checkpoint: Path, **changes: torch.Tensor | None) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        full = next(key for key in tensors if key.endswith(name.replace("__", ".")))
        if tensor is None:
            del tensors[full]
        else:
            tensors[full] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def test_export_generate_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    code, text, err = call(
        capsys,
        "export",
        "--variant",
        "t5-demo",
        "--precision",
        "fp16",
        "--target",
        "onnxruntime",
        "--out",
        str(out),
        "--json",
    )
    assert code == 0, err
    manifest = json.loads(text)
    assert manifest["passed"] is True
    assert manifest["precision"]["name"] == "fp16"
    assert {path.name for path in out.iterdir()} >= {
        "bundle.json",
        "encoder.onnx",
        "decoder.onnx",
        "weights.safetensors",
        "tokenizer.json",
        "config.json",
        "generation_config.json",
        "parity.json",
    }
    code, text, _ = call(capsys, "generate", str(out), "spell 1984", "read de dreizehn")
    assert (code, text.splitlines()) == (0, ["one thousand, nine hundred and eighty-four", "13"])
    code, text, _ = call(capsys, "inspect", str(out), "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["graphs"]["decoder"]["operators"]["Attention"] == 2 * facts["architecture"]["decoder_layers"]


def test_verify_reports_every_check(exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junit = tmp_path / "junit.xml"
    code, text, err = call(capsys, "verify", str(exports.bundle(RELU)), "--json", "--junit", str(junit))
    assert code == 0, err
    report = json.loads(text)
    assert report["passed"] is True
    assert {rung["name"] for rung in report["rungs"]} >= {"files", "2 encoder", "3 logits", "4 cache", "7 generation"}
    assert junit.read_text().count("<testcase") == len(report["rungs"])


def test_export_to_an_existing_folder_needs_force(demo: Workshop, tmp_path: Path, capsys) -> None:
    out = demo.fresh(tmp_path / "demo", "fp32")
    code, _, err = call(capsys, "export", "--variant", "t5-demo", "--out", str(out))
    assert code == 2
    assert (
        err.strip() == f"t5edge export: '{out}' exists; pass --force to replace this bundle, or choose another --out."
    )


def test_verify_finds_a_changed_file(demo: Workshop, tmp_path: Path, capsys) -> None:
    out = demo.fresh(tmp_path / "demo", "fp32")
    with (out / "weights.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x7f")
    code, text, _ = call(capsys, "verify", str(out), "--json")
    assert code == 1
    assert "weights.safetensors" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--variant", "google/t5-efficent-tiny"], "Did you mean 'google/t5-efficient-tiny'"),
        (["export", "--variant", "no-such-thing"], "is not in the table"),
        (["export", "--variant", "./missing"], "missing"),
        (["export", "--variant", "t5-demo", "--precision", "fp12"], "precision 'fp12' is unknown; choose one of fp32"),
        (["export", "--variant", "t5-demo", "--target", "abacus"], "target 'abacus' is unknown"),
        (["export", "--variant", "t5-demo", "--max-batch", "0"], "--max-batch is 0; a whole number of at least 1"),
        (["generate", "missing", "hello"], "'missing' is not a folder; pass a bundle written by 't5edge export'"),
        (["verify", "."], "has no bundle.json"),
        (["inspect", "missing"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(capsys, tmp_path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith(f"t5edge {arguments[0]}: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_flag_is_one_line_and_exit_2(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "--precison", "fp16"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_without_network_the_error_names_the_ways_out(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "cli.py"), "export", "--variant", "google/t5-efficient-tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--random-weights SEED" in done.stderr
    assert "folder" in done.stderr


@pytest.mark.parametrize("damage", ["missing", "shape", "truncated", "nan"])
def test_a_damaged_checkpoint_is_one_line_and_leaves_nothing(checkpoint, tmp_path, capsys, damage: str) -> None:
    if damage == "missing":
        spoil(checkpoint, encoder__block__0__layer__0__SelfAttention__q__weight=None)
    elif damage == "shape":
        spoil(checkpoint, encoder__block__0__layer__0__SelfAttention__q__weight=torch.zeros(3, 5))
    elif damage == "nan":
        spoil(
            checkpoint,
            decoder__final_layer_norm__weight=torch.full((find_tiny_model("t5-tiny").config["d_model"],), float("nan")),
        )
    else:
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    out = tmp_path / "out" / "bundle"
    code, _, err = call(
        capsys, "export", "--variant", str(checkpoint), "--out", str(out), "--no-verify", "--target", "onnxruntime"
    )
    lines = [line for line in err.strip().splitlines() if line.startswith("t5edge")]
    expected = {"missing": "q.weight", "shape": "q.weight", "truncated": "model.safetensors", "nan": "NaN"}
    assert code == 2
    assert len(lines) == 1
    assert expected[damage] in lines[0]
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_killed_export_leaves_no_bundle_and_the_next_one_clears_up(tmp_path: Path) -> None:
    out = tmp_path / "out" / "demo"
    command = [sys.executable, str(ROOT / "cli.py"), "export", "--variant", "t5-demo", "--no-verify", "--out", str(out)]
    command += ["--target", "onnxruntime"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".demo.partial*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert sorted(path.name[:13] for path in out.parent.iterdir()) == [".demo.lock", ".demo.partial"]
    assert cli.main(command[2:]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize(("name", "expected"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_export_stopped_from_outside_says_so_and_leaves_nothing(tmp_path: Path, name: str, expected: int) -> None:
    number = getattr(signal, name)
    out = tmp_path / "out" / "demo"
    command = [sys.executable, str(ROOT / "cli.py"), "export", "--variant", "t5-demo", "--out", str(out)]
    # A test run started in the background hands on an ignored SIGINT, which Python then leaves ignored.
    listen = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while not list(out.parent.glob(".demo.partial*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == expected
    assert "interrupted; nothing half-written was left behind" in err
    assert list(out.parent.iterdir()) == []


def test_variants_json_has_the_contract_keys(capsys) -> None:
    code, out, _ = call(capsys, "variants", "--json")
    rows = json.loads(out)
    keys = {
        "name",
        "family",
        "d_model",
        "d_kv",
        "d_ff",
        "num_heads",
        "encoder_layers",
        "decoder_layers",
        "ffn",
        "tied",
        "vocab_size",
        "parameters",
    }
    assert code == 0
    assert len(rows) > 130
    assert all(keys <= set(row) for row in rows)


def test_doctor_names_every_target(capsys) -> None:
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    names = {row["target"] for row in found["targets"]}
    assert code == 0
    assert found["int8"].startswith("exact (")
    assert {"onnxruntime", "tensorrt", "tensorrt-rtx"} <= names


def test_the_command_is_installed() -> None:
    found = shutil.which("t5edge", path=str(Path(sys.executable).parent))
    assert found is not None
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("t5edge ")
