"""optimum's layout read by the clients it is for: their tokens are ours.

    T5EDGE_PEER_PYTHON=PEERS/bin/python T5EDGE_TRANSFORMERS_JS=FOLDER pytest -m peer tests/pipeline/exporter/layouts

``FOLDER`` is where ``npm install @huggingface/transformers`` ran; see benchmarks/README.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5edge
from support.bundles import tiny_workshop
from support.optimum_layout import write_layout

pytestmark = pytest.mark.peer
SUPPORT = Path(__file__).parents[3] / "support"
PEER_PYTHON, JS_PACKAGES = "T5EDGE_PEER_PYTHON", "T5EDGE_TRANSFORMERS_JS"
TEXTS = ("spell 1984", "read de dreizehn", "spell 7", "spell 60321", "spell de 45")
NEW_TOKENS = 32
PRECISIONS = ("fp32", "fp16", "int8-weight", "int4-weight")
OTHER_HEADS = ("t5-tiny", "mt5-tiny", "ul2-tiny", "umt5-tiny")
"""Tied, untied, d_kv 256, a bias in every layer; no tokenizer, and d_kv is never d_model / heads."""
EOS = 1


def needed(variable: str, what: str) -> str:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set; point it at {what} (see benchmarks/README.md)")
    return value


@pytest.fixture(scope="module")
def peer_python() -> str:
    return needed(PEER_PYTHON, "the python that has optimum-onnx")


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The command that runs transformers.js, a folder left out."""
    packages = needed(JS_PACKAGES, "the folder where 'npm install @huggingface/transformers' ran")
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on the PATH; install Node.js")
    return [node, str(SUPPORT / "transformers_js_client.mjs"), packages]


def ask(command: Sequence[str], request: dict[str, Any]) -> list[dict[str, Any]]:
    offline = {"TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline
    text = json.dumps(request)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["answers"]
    return answers


def ask_optimum(python: str, folder: Path, ids: np.ndarray, mask: np.ndarray) -> list[dict[str, Any]]:
    request = {"beams": [1, 4], "merged": [None, False, True], "new_tokens": NEW_TOKENS}
    arrays = {"input_ids": ids.tolist(), "attention_mask": mask.tolist()}
    return ask([python, str(SUPPORT / "optimum_client.py"), str(folder)], {**request, **arrays})


def check_optimum_tokens(python: str, folder: Path, ids: np.ndarray, mask: np.ndarray) -> None:
    model = t5edge.load(folder)
    answers = ask_optimum(python, folder, ids, mask)
    assert len(answers) == 6
    for answer in answers:
        ours = model.generate(ids, mask, max_new_tokens=NEW_TOKENS, num_beams=answer["beams"])
        np.testing.assert_array_equal(ours, answer["tokens"], err_msg=str(answer))
        later = ["decoder_model.onnx", "decoder_with_past_model.onnx"]
        assert answer["files"][1:] == (later if answer["merged"] is False else answer["files"][1:2])
        assert answer["merged"] is False or answer["files"][1].startswith("decoder_model_merged")


@pytest.mark.parametrize("name", PRECISIONS)
def test_optimum_generates_our_tokens(peer_python: str, optimum_demo: Callable[[str], Path], name: str) -> None:
    folder = optimum_demo(name)
    ids, mask = t5edge.load(folder).tokenizer.encode(TEXTS)
    assert not mask.all()
    check_optimum_tokens(peer_python, folder, ids, mask)


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_optimum_generates_our_tokens_whatever_d_kv_is(peer_python: str, tmp_path: Path, name: str) -> None:
    workshop = tiny_workshop(tmp_path, name)
    a = workshop.checkpoint.architecture
    assert a.d_kv != a.d_model // a.num_heads
    folder = write_layout(workshop, "fp32", tmp_path / "bundle")
    ids = np.random.default_rng(0).integers(3, a.vocab_size, (3, 20))
    mask = np.ones_like(ids)
    mask[1, 9:] = ids[1, 9:] = mask[2, 4:] = ids[2, 4:] = 0
    check_optimum_tokens(peer_python, folder, ids, mask)


@pytest.mark.parametrize("name", PRECISIONS)
def test_transformers_js_generates_our_text(node: list[str], optimum_demo: Callable[[str], Path], name: str) -> None:
    folder = optimum_demo(name)
    request = {"batches": [*([text] for text in TEXTS), list(TEXTS)], "new_tokens": NEW_TOKENS}
    *single, batch = ask([*node, str(folder)], request)
    ours = t5edge.load(folder).generate_text(TEXTS, max_new_tokens=NEW_TOKENS)
    assert [text for answer in single for text in answer["texts"]] == ours
    assert [until_eos(row) for row in batch["tokens"]] == [until_eos(*answer["tokens"]) for answer in single]


def until_eos(row: list[int]) -> list[int]:
    """The answer alone: transformers.js goes on in rows that are finished until the last one is."""
    return row[: row.index(EOS) + 1]
