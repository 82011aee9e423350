"""Damaged checkpoints, damaged bundles, odd environments: one line and exit code 2, never a traceback.

Hashes in the manifest are made to fit each damaged bundle where that can be done, as whoever tampers would do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from support.exports import fix_hashes
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge import cli
from t5edge.errors import UserError

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "tests" / "bundles-0.1" / "byt5-int8"
DEEP = "[" * 100_000
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(find_tiny_model("t5-tiny"), tmp_path_factory.mktemp("faults") / "checkpoint", seed=0)


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RELEASED, tmp_path / "bundle"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line with which the command refuses."""
    code = cli.main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("t5edge ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert len(lines[0]) < 2000
    return lines[0]


def export(checkpoint: Path | str, out: Path, *more: str) -> list[str]:
    return ["export", "--variant", str(checkpoint), "--no-verify", "--target", "onnxruntime", "--out", str(out), *more]


CONFIGS: dict[str, dict[str, Any]] = {
    "depth of 10**9": {"num_layers": 10**9},
    "depth is text": {"num_layers": "two"},
    "depth is zero": {"num_layers": 0},
    "depth is negative": {"num_layers": -2},
    "depth is a fraction": {"num_layers": 2.5},
    "depth is true": {"num_layers": True},
    "decoder depth is a list": {"num_decoder_layers": [2]},
    "width is zero": {"d_model": 0},
    "width is null": {"d_model": None},
    "width is text": {"d_model": "wide"},
    "heads of zero": {"num_heads": 0},
    "heads of 10**9": {"num_heads": 10**9},
    "head width is text": {"d_kv": "16"},
    "inner width is negative": {"d_ff": -1},
    "vocabulary of zero": {"vocab_size": 0},
    "vocabulary of 10**12": {"vocab_size": 10**12},
    "vocabulary is text": {"vocab_size": "many"},
    "distance is text": {"relative_attention_max_distance": "far"},
    "distance of zero": {"relative_attention_max_distance": 0},
    "distance of 10**12": {"relative_attention_max_distance": 10**12},
    "buckets of zero": {"relative_attention_num_buckets": 0},
    "buckets is text": {"relative_attention_num_buckets": "32"},
    "epsilon is text": {"layer_norm_epsilon": "small"},
    "epsilon is NaN": {"layer_norm_epsilon": float("nan")},
    "epsilon is negative": {"layer_norm_epsilon": -1.0},
    "epsilon is infinite": {"layer_norm_epsilon": float("inf")},
    "architectures is a number": {"architectures": 5, "model_type": None},
    "model type is a list": {"model_type": ["t5"]},
    "activation is unknown": {"feed_forward_proj": "gated-nothing"},
    "activation is a number": {"feed_forward_proj": 3},
    "end is text": {"eos_token_id": "one"},
    "end beyond the vocabulary": {"eos_token_id": 10**6},
    "end is negative": {"eos_token_id": -5},
    "start is an object": {"decoder_start_token_id": {}},
    "start beyond the vocabulary": {"decoder_start_token_id": 10**9},
    "padding is a fraction": {"pad_token_id": 0.5},
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_config_value_without_sense(
    checkpoint: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(capsys, *export(checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


FILES: dict[str, tuple[str, str | bytes]] = {
    "config nested deep": ("config.json", DEEP),
    "config is a list": ("config.json", "[]"),
    "config is null": ("config.json", "null"),
    "config is empty": ("config.json", ""),
    "config is not UTF-8": ("config.json", b"\xff\xfe\x00"),
    "generation config nested deep": ("generation_config.json", DEEP),
    "generation config is a list": ("generation_config.json", "[1]"),
    "generation config is damaged": ("generation_config.json", "{"),
    "generation config with an end beyond": ("generation_config.json", '{"eos_token_id": 1000000}'),
    "tokenizer nested deep": ("tokenizer.json", DEEP),
    "tokenizer is a list": ("tokenizer.json", "[]"),
    "tokenizer is empty": ("tokenizer.json", ""),
    "tokenizer without a model": ("tokenizer.json", '{"version": "1.0"}'),
    "weights are empty": ("model.safetensors", b""),
    "weights are text": ("model.safetensors", b"version https://git-lfs"),
    "weights' header of 2**60 bytes": ("model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"),
    "weights' header is null": ("model.safetensors", (4).to_bytes(8, "little") + b"null"),
    "weights' header nested deep": ("model.safetensors", len(DEEP).to_bytes(8, "little") + DEEP.encode()),
    "index is a list": ("model.safetensors.index.json", "[]"),
    "index without a map": ("model.safetensors.index.json", "{}"),
    "index nested deep": ("model.safetensors.index.json", DEEP),
    "index names a file of 300 letters": (
        "model.safetensors.index.json",
        json.dumps({"weight_map": {"shared.weight": "a" * 300}}),
    ),
    "index names a file outside": (
        "model.safetensors.index.json",
        json.dumps({"weight_map": {"shared.weight": "../../etc/passwd"}}),
    ),
}


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES.keys())
def test_a_damaged_file_of_a_checkpoint(
    checkpoint: Path, tmp_path: Path, name: str, content: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith("index.json"):
        (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(content.encode() if isinstance(content, str) else content)
    refused(capsys, *export(checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@POSIX
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "spiece.model"]
)
def test_a_checkpoint_s_file_that_is_a_pipe_is_not_waited_for(
    checkpoint: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / name).touch()
    pipe(checkpoint / name)
    out = tmp_path / "out"
    code = cli.main([*export(checkpoint, out), "--precision", "fp32"])
    assert code == (2 if name in ("config.json", "model.safetensors") else 0), capsys.readouterr().err


@POSIX
def test_texts_in_a_pipe_are_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").touch()
    pipe(tmp_path / "texts")
    arguments = [*export("t5-demo", tmp_path / "out"), "--precision", "int8", "--calibration", str(tmp_path / "texts")]
    assert "it is not a regular file" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "variant",
    ["a" * 5000, "~nobodyhere/x", "", "\x00", "[/x]", "a/b/c/d", "../..", "-"],
    ids=lambda text: repr(text[:9]),
)
def test_a_variant_that_is_none(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, *export(variant, tmp_path / "out"))


@pytest.mark.parametrize(
    "name", ["a" * 300, "x/" * 3000, "file/below", "~nobodyhere/x", "nul\x00byte"], ids=lambda text: repr(text[:9])
)
def test_a_folder_that_cannot_be(
    checkpoint: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    code = cli.main(export(checkpoint, Path(name)))
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert code in (0, 2)
    assert (tmp_path / "file").read_text() == "mine"


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    """A named pipe into which nobody writes."""
    path.unlink()
    os.mkfifo(path)


def nest(path: Path) -> None:
    path.write_text(DEEP)


COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": ("a prompt", "--max-new-tokens", "2"),
    "inspect": (),
    "report": (),
    "build": ("--target", "tensorrt-rtx"),
}
PARTS = (
    "encoder.onnx",
    "decoder_buffered.onnx",
    "weights.safetensors",
    "tokenizer.json",
    "generation_config.json",
    "parity.json",
    "bundle.json",
)


@pytest.mark.parametrize("damage", [halve, empty, flip, folder, nest, Path.unlink, pytest.param(pipe, marks=POSIX)])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("command", ["generate", "inspect", "report"])
def test_a_damaged_file_of_a_bundle(
    bundle: Path, command: str, part: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(bundle / part)
    with contextlib.suppress(UserError, OSError):
        fix_hashes(bundle)
    code = cli.main([command, str(bundle), *COMMANDS[command]])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert code in (0, 2), err


@pytest.mark.parametrize("place", ["../secret", "ABSOLUTE/secret", "sub/../../secret", "link"])
@pytest.mark.parametrize("graph", ["encoder", "decoder_buffered"])
def test_weights_outside_of_a_bundle_are_not_read(
    bundle: Path, graph: str, place: str, rtx: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that names a file elsewhere, by its path or through a link in the bundle: right in every other way."""
    secret = Path(shutil.copy(bundle / "weights.safetensors", bundle.parent / "secret"))
    (bundle / "sub").mkdir()
    (bundle / "link").symlink_to(secret)
    model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = place.replace("ABSOLUTE", str(bundle.parent))
    onnx.save(model, bundle / f"{graph}.onnx")
    fix_hashes(bundle)
    refused(capsys, "generate", bundle, "a", "--max-new-tokens", "2")
    if graph == "encoder":
        arguments = ("build", bundle, "--target", "tensorrt-rtx", "--compute-capability", "8.6")
        assert "not a file of the bundle" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format_version",), "1"),
        (("format_version",), None),
        (("format_version",), 10**9),
        (("generation",), None),
        (("generation", "max_new_tokens"), 10**12),
        (("generation", "eos_token_id"), 10**9),
        (("generation", "num_beams"), 10**9),
        (("limits",), {}),
        (("limits", "max_batch"), -1),
        (("limits", "max_source"), "long"),
        (("ports",), {}),
        (("ports", "encoder"), []),
        (("precision",), "int8"),
        (("precision", "name"), "[/x]"),
        (("variant",), "[/x]\x1b[31mred"),
        (("architecture", "d_model"), "wide"),
        (("architecture", "vocab_size"), 10**12),
        (("architecture",), None),
        (("files",), {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}),
        (("files",), {"[/y]": {"bytes": 1, "sha256": "0"}}),
        (("files",), []),
        (("parity",), 5),
        (("tools",), {"\x1b]0;title\x07": "1"}),
        (("engines",), {"tensorrt": 3}),
        (("costs",), {"encoder": None}),
        (("cache",), "elsewhere"),
        (("session",), {"encoder": 5}),
        (("quantization",), 1),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else ascii(value)[:20],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_manifest_without_sense(
    bundle: Path, command: str, place: tuple[str, ...], value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    entry = data
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    path.write_text(json.dumps(data), encoding="utf-8")
    code = cli.main([command, str(bundle), *COMMANDS[command]])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert code in (0, 2), err
    assert "\x1b]0;" not in out + err
    assert "\x1b[31mred" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a", "--max-new-tokens", "1000000000000"),
        ("generate", "a", "--num-beams", "5000000"),
        ("generate", "a", "--num-beams", "0"),
        ("generate", "a", "--max-new-tokens", "-1"),
        ("generate", "a", "--do-sample", "--temperature", "1e-300"),
        ("generate", "a", "--do-sample", "--temperature", "nan"),
        ("generate", "a", "--do-sample", "--top-p", "2"),
        ("generate", "a", "--repetition-penalty", "0"),
        ("generate", "\udcff"),
        ("generate", "a" * 100_000_000),
        ("generate", "a" * 1_000_000),
        ("generate", "a", "--target", "abacus"),
        ("bench", "--batch", "1000000000000"),
        ("bench", "--source", "1000000000"),
        ("bench", "--new-tokens", "0"),
        ("bench", "--threads", "0"),
        ("build", "--target", "onnxruntime"),
        ("report", "--out", "/proc/nothing/page.html"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40].encode("ascii", "replace").decode(),
)
def test_a_request_without_sense(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = arguments
    refused(capsys, command, RELEASED, *rest)


@pytest.mark.parametrize("name", ["[", "[/x]", "a b", "\u00fc\u4f60", "-dash"])
def test_a_bundle_in_a_folder_of_an_odd_name(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / name / "x]"
    shutil.copytree(RELEASED, home)
    for command in ("inspect", "report"):
        assert cli.main([command, str(home)]) == 0, capsys.readouterr().err


@POSIX
@pytest.mark.parametrize("command", ["generate BUNDLE a --max-new-tokens 2", "inspect BUNDLE", "inspect BUNDLE --json"])
@pytest.mark.parametrize("end", [">&-", "> /dev/full", "2>&-", "<&-"])
def test_a_stream_that_takes_nothing(command: str, end: str) -> None:
    line = f"{sys.executable} {ROOT / 'cli.py'} {command.replace('BUNDLE', str(RELEASED))} {end}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if end == "> /dev/full" else 0), done.stderr
    if end == "> /dev/full":
        assert "No space left on device" in done.stderr
