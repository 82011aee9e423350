"""Files that say they are safetensors and are not: every one is refused in one line, and none costs memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.names import name_tensors
from t5edge.exporter.checkpoint.stores import FileStore, open_folder_store

CONFIG = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 4, "d_model": 2}
CONFIG |= {"d_kv": 1, "d_ff": 3, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
DEPTH = 100_000


def write(folder: Path, header: str | bytes, data: int = 0, length: int | None = None) -> Path:
    """A safetensors file of ``header`` and ``data`` zero bytes; ``length``: what it says its header's length is."""
    text = header.encode() if isinstance(header, str) else header
    path = folder / "model.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


def entry(**facts: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **facts}


def one(**facts: object) -> str:
    return json.dumps({"a": entry(**facts)})


def two(begin: int, end: int) -> str:
    return json.dumps({"a": entry(), "b": entry(data_offsets=[begin, end])})


HEADERS: dict[str, tuple[str | bytes, int]] = {
    "null": ("null", 0),
    "a number": ("3", 0),
    "a list": ("[]", 0),
    "nothing": ("", 0),
    "no UTF-8": (b"\xff" * 40, 0),
    "deep lists": ("[" * DEPTH + "]" * DEPTH, 0),
    "deep objects": ('{"a":' * DEPTH + "1" + "}" * DEPTH, 0),
    "an entry that is a string": ('{"a": "x"}', 0),
    "no dtype": ('{"a": {"shape": [2], "data_offsets": [0, 8]}}', 8),
    "no shape": ('{"a": {"dtype": "F32", "data_offsets": [0, 8]}}', 8),
    "no offsets": ('{"a": {"dtype": "F32", "shape": [2]}}', 8),
    "a dtype that is a list": (one(dtype=["F32"]), 8),
    "an unknown dtype": (one(dtype="F7"), 8),
    "an unknown dtype that moves the cursor": (one(dtype="F7\n\x1b[2J\x07"), 8),
    "a shape that is a string": (one(shape="2"), 8),
    "a shape of floats": (one(shape=[2.0]), 8),
    "a negative shape": (one(shape=[-2]), 8),
    "a shape beyond 64 bits": (one(shape=[2**63, 2**63]), 8),
    "a shape that does not fit": (one(shape=[3]), 8),
    "negative offsets": (one(data_offsets=[-8, 0]), 8),
    "offsets in the wrong order": (one(data_offsets=[8, 0]), 8),
    "three offsets": (one(data_offsets=[0, 4, 8]), 8),
    "an overlap": (two(4, 12), 12),
    "a hole": (two(12, 20), 20),
    "the same bytes twice": (two(0, 8), 8),
    "metadata that is no map": ('{"__metadata__": 3}', 0),
    "data cut short": (one(), 4),
    "data too long": (one(), 9),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_malformed_file_is_refused_in_one_printable_line(tmp_path: Path, name: str) -> None:
    header, data = HEADERS[name]
    path = write(tmp_path, header, data)
    with pytest.raises(UserError) as caught:
        open_folder_store(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} ({path.stat().st_size} bytes) is truncated or damaged: ")
    assert "Copy or download it again" in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("length", [0, 3, 10**6, 2**62, 2**64 - 1])
def test_a_header_length_that_lies(tmp_path: Path, length: int) -> None:
    write(tmp_path, one(), 8, length=length)
    with pytest.raises(UserError, match="is truncated or damaged"):
        open_folder_store(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00", bytes(8)])
def test_a_file_of_almost_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is truncated or damaged"):
        open_folder_store(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_are_no_floats_are_named_and_not_compared(tmp_path: Path, dtype: str, tied: bool) -> None:
    names = ["shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"]
    header: dict[str, Any] = {
        name: {"dtype": dtype, "shape": [4, 2], "data_offsets": [8 * index, 8 * index + 8]}
        for index, name in enumerate(names)
    }
    write(tmp_path, json.dumps(header), 24)
    store = open_folder_store(tmp_path)
    with pytest.raises(UserError, match="not of a float type") as caught:
        name_tensors({**CONFIG, "tie_word_embeddings": tied}, store, "somewhere")
    assert f"shared.weight is {dtype}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_that_the_format_allows_in_another_spelling(tmp_path: Path) -> None:
    """Out of order, and with dtypes of other widths between: tensors are found where they lie."""
    torch = pytest.importorskip("torch")
    header = {
        "last": {"dtype": "F32", "shape": [2], "data_offsets": [9, 17]},
        "first": {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]},
        "empty": {"dtype": "F16", "shape": [0, 4], "data_offsets": [3, 3]},
        "middle": {"dtype": "BOOL", "shape": [2, 3], "data_offsets": [3, 9]},
        "__metadata__": {"format": "pt"},
    }
    path = write(tmp_path, json.dumps(header) + "   ")
    with path.open("ab") as file:
        file.write(bytes(9) + torch.tensor([1.5, -2.25]).numpy().tobytes())
    store: FileStore = open_folder_store(tmp_path)
    assert store.read("last").tolist() == [1.5, -2.25]
    assert store.read("empty").shape == (0, 4)
    assert store.tensors["first"].dtype == "F4"
