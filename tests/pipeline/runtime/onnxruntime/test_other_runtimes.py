"""Bundles on runtimes that are not ours to choose: older ONNX Runtimes and OpenVINO, each in an environment of its own.

pytest -m peer tests/pipeline/runtime/onnxruntime/test_other_runtimes.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import t5edge
from support.bundles import Workshop
from support.environments import ROOT, Environment, build, copy_sources, find_python
from support.shared import once, shared_folder
from t5edge.pipeline import export

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1800)]
CLIENT = ROOT / "tests" / "support" / "plain_client.py"
HELD_OUT = ROOT / "exporter" / "data" / "t5-demo" / "heldout.jsonl"
TEXTS, STEPS, END = 200, 40, 1
RUNTIMES = {
    "onnxruntime-1.17": ("onnxruntime==1.17.3", "numpy<2"),
    "onnxruntime-1.20": ("onnxruntime==1.20.1",),
    "openvino": ("openvino==2026.4.*",),
}
PORTABLE = ("fp32", "fp16", "int8", "int8-weight")
EXACT = {"fp32": 2e-6, "int8": 2e-3, "int8-weight": 2e-6, "int4-weight": 2e-6, "fp16": 2e-3}
"""Largest relative error of the encoder's output against ONNX Runtime that computes as the graph says, unfused.

A last bit in float32 may move an activation to the next integer, or a number to the next float16.
"""
Answers = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Environment]:
    environment = Environment.make(tmp_path_factory.mktemp(request.param) / "env")
    environment.install(*RUNTIMES[request.param])
    return request.param, environment


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """t5-demo as an export writes it, in a precision and opset."""
    root = shared_folder(tmp_path_factory, "other-runtimes")

    def make(precision: str, opset: int) -> Path:
        settings = {"target": ("onnxruntime",), "no_verify": True, "opset": opset}
        return once(root / f"{precision}-{opset}", lambda out: export("t5-demo", precision, out=out, **settings))

    return make


@pytest.fixture(scope="module")
def request_file(demo: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.bundle("fp32") / "tokenizer.json"))
    sources = [json.loads(line)["source"] for line in HELD_OUT.read_text("utf-8").splitlines()[:TEXTS]]
    encoded = [tokenizer.encode(source).ids for source in sources]
    ids = np.zeros((len(encoded), max(map(len, encoded))), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    path = tmp_path_factory.mktemp("request") / "request.npz"
    start = demo.checkpoint.architecture.decoder_start_token_id
    np.savez(path, input_ids=ids, attention_mask=mask, steps=STEPS, start=start)
    return path


def ask(runtime: tuple[str, Environment], folder: Path, request: Path) -> Answers:
    name, environment = runtime
    answer = environment.folder / "answer.npz"
    module = name.partition("-")[0]
    done = environment.call(environment.python, CLIENT, module, folder, request, answer, timeout=900)
    assert done.returncode == 0, done.stderr
    return dict(np.load(answer))


def check(runtime: tuple[str, Environment], folder: Path, request: Path, limit: float) -> None:
    """The tokens of our runtime, and the encoder's numbers."""
    import onnxruntime

    given, found = np.load(request), ask(runtime, folder, request)
    wanted = t5edge.load(folder).generate(given["input_ids"], given["attention_mask"], max_new_tokens=STEPS)
    assert [ended(row) for row in found["tokens"]] == [ended(row) for row in np.asarray(wanted)]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), options)
    feeds = {name: given[name] for name in ("input_ids", "attention_mask")}
    hidden = session.run(["last_hidden_state"], feeds)[0].astype(np.float64)
    seen = feeds["attention_mask"].astype(bool)
    error = np.linalg.norm((found["hidden"] - hidden)[seen]) / np.linalg.norm(hidden[seen])
    print(f"{runtime[0]} {found['version']} {folder.name}: relative error {error:.2g}")
    assert error < limit


def ended(tokens: np.ndarray) -> list[int]:
    """A row's tokens before its end, without a start token."""
    row = [int(token) for token in tokens]
    row = row[1:] if row and row[0] == 0 else row
    return row[: row.index(END)] if END in row else row


@pytest.mark.parametrize("precision", PORTABLE)
def test_portable_graphs_give_the_same_tokens(
    runtime: tuple[str, Environment], exported: Callable[[str, int], Path], request_file: Path, precision: str
) -> None:
    check(runtime, exported(precision, 17), request_file, EXACT[precision])


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weight", "int4-weight"])
def test_openvino_reads_the_standard_graphs_too(
    runtime: tuple[str, Environment], exported: Callable[[str, int], Path], request_file: Path, precision: str
) -> None:
    if runtime[0] != "openvino":
        pytest.skip("older ONNX Runtimes know no opset 23: what the portable form is for")
    check(runtime, exported(precision, 23), request_file, EXACT[precision])


def test_our_runtime_takes_an_old_onnxruntime(exported: Callable[[str, int], Path], tmp_path: Path) -> None:
    """Python 3.10, which JetPack 6 has, and the quantized graphs that this onnxruntime refuses in the other form."""
    python = find_python("3.10")
    if python is None:
        pytest.skip("Python 3.10 is not installed here")
    device = Environment.make(tmp_path / "env", python)
    device.install(str(build("wheel", copy_sources(tmp_path / "sources"), tmp_path)), "onnxruntime==1.20.1")
    for precision in PORTABLE:
        folder = exported(precision, 17)
        done = device.t5edge("generate", folder, "spell 1984", "spell de 1984")
        assert done.stdout.splitlines() == t5edge.load(folder).generate_text(["spell 1984", "spell de 1984"])
    refused = device.t5edge("generate", exported("int8", 23), "spell 1984")
    assert refused.returncode == 2
    assert "export with --opset 17" in refused.stderr
