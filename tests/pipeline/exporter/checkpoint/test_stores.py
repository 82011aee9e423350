"""Weights on disk in every form, whole, damaged and incomplete."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.checkpoint.stores import FileStore, open_folder_store, read_index

TINY = find_tiny_model("t5-tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(TINY, tmp_path / "byt5", seed=5)


def refusal(folder: Path) -> str:
    """The message with which ``folder`` is refused; always one line."""
    with pytest.raises(UserError) as caught:
        open_folder_store(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stores(tmp_path: Path) -> list[FileStore]:
    """The same weights in the four forms a folder may have."""
    forms = [(sharded, pickled) for sharded in (False, True) for pickled in (False, True)]
    return [
        open_folder_store(save_tiny_model(TINY, tmp_path / f"{sharded}{pickled}", 5, sharded=sharded, bin=pickled))
        for sharded, pickled in forms
    ]


def test_four_forms_hold_the_same(tmp_path: Path) -> None:
    first, *others = stores(tmp_path)
    for other in others:
        assert {name: entry.shape for name, entry in other.tensors.items()} == TINY.architecture.tensor_shapes()
        assert all(torch.equal(other.read(name), first.read(name)) for name in first.tensors)


def test_stored_dtypes_stay(tmp_path: Path) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    state = {str(dtype).removeprefix("torch."): torch.ones(2, 3, dtype=dtype) for dtype in dtypes}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    mapped = open_folder_store(tmp_path)
    assert {name: mapped.read(name).dtype for name in mapped.tensors} == {k: v.dtype for k, v in state.items()}
    (tmp_path / "model.safetensors").unlink()
    pickled = open_folder_store(tmp_path)
    assert {name: entry.dtype for name, entry in pickled.tensors.items()} == {name: name for name in state}


def test_reading_maps_and_dropping_unmaps(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1000, 1000), "b": torch.zeros(3)}, tmp_path / "model.safetensors")
    store = open_folder_store(tmp_path)
    mappings = Path("/proc/self/maps")
    if not mappings.exists():
        pytest.skip("needs /proc")
    tensor = store.read("a")
    assert str(tmp_path) in mappings.read_text()
    del tensor
    assert str(tmp_path) not in mappings.read_text()


@pytest.mark.parametrize("pickled", [False, True])
def test_slices_are_the_tensor(tmp_path: Path, pickled: bool) -> None:
    stored = open_checkpoint(str(save_tiny_model(TINY, tmp_path / "tiny", 5, bin=pickled)))
    for checkpoint in (stored, open_checkpoint("t5-demo", random_weights=0)):
        whole = checkpoint.read("shared.weight")
        row = whole[0].nbytes
        for size, rows in ((7 * row, 7), (1, 1)):
            parts = list(checkpoint.read_slices("shared.weight", size))
            assert max(map(len, parts)) == rows
            assert torch.equal(torch.cat(parts), whole)


def test_a_slice_is_mapped_alone(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6e6).reshape(6000, 1000)}, tmp_path / "model.safetensors")
    part = open_folder_store(tmp_path).read("a", range(5990, 6000))
    assert part.shape == (10, 1000)
    assert float(part[0, 0]) == 5_990_000
    mappings = Path("/proc/self/maps")
    if not mappings.exists():
        pytest.skip("needs /proc")
    (line,) = [line for line in mappings.read_text().splitlines() if str(tmp_path) in line]
    begin, end = (int(number, 16) for number in line.split()[0].split("-"))
    assert end - begin < 2**20


def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    """Three times the machine's memory, all of it a hole; the last tensor lies at an odd offset."""
    rows = 3 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    huge, small = rows * 2**20, torch.tensor([[1.5, -2.0, 3.25]])
    header = {
        "huge": {"dtype": "F32", "shape": [rows, 2**18], "data_offsets": [0, huge]},
        "half": {"dtype": "F16", "shape": [1], "data_offsets": [huge, huge + 2]},
        "small": {"dtype": "F32", "shape": [1, 3], "data_offsets": [huge + 2, huge + 14]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(huge + 2, os.SEEK_CUR)
        file.write(small.numpy().tobytes())
    store = open_folder_store(tmp_path)
    assert torch.equal(store.read("small"), small)
    assert store.read("half").shape == (1,)


def test_a_header_that_contradicts_itself(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert "is truncated or damaged: invalid shape, data type, or offset for tensor." in refusal(tmp_path)


def test_same_values_looks_at_all_rows(tmp_path: Path) -> None:
    table = torch.arange(20_000, dtype=torch.float32).reshape(10_000, 2)
    other = table.clone()
    other[9_999, 1] += 1
    save_file({"a": table, "b": table.clone(), "c": other, "d": table[1:].clone()}, tmp_path / "model.safetensors")
    store = open_folder_store(tmp_path)
    assert store.same_values("a", "b")
    assert not store.same_values("a", "c")
    assert not store.same_values("a", "d")


def test_tensors_that_share_storage_in_a_pickle_are_equal_without_comparing(tmp_path: Path) -> None:
    table = torch.full((4, 2), torch.nan)
    torch.save({"a": table, "b": table}, tmp_path / "pytorch_model.bin")
    assert open_folder_store(tmp_path).same_values("a", "b")


def test_old_torch_files_that_cannot_be_mapped(tmp_path: Path) -> None:
    weights = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weights}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(open_folder_store(tmp_path).read("a"), weights)


def test_fingerprint_follows_the_files(folder: Path) -> None:
    before = open_folder_store(folder).fingerprint()
    assert open_folder_store(folder).fingerprint() == before
    save_tiny_model(TINY, folder, seed=6)
    assert open_folder_store(folder).fingerprint() != before


def test_truncated_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    uncovered = "is truncated or damaged: incomplete metadata, file not fully covered."
    assert f"{path} ({len(content) - 100} bytes) {uncovered}" in refusal(folder)
    path.write_bytes(content[:50])
    assert "(50 bytes) is truncated or damaged: invalid header length" in refusal(folder)
    path.write_bytes(content + b"x")
    assert f"{path} ({len(content) + 1} bytes) {uncovered}" in refusal(folder)


def test_git_lfs_pointer_instead_of_weights(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in refusal(folder)


def test_safetensors_header_that_is_no_json(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((20).to_bytes(8, "little") + b"\xff" * 40)
    assert "is truncated or damaged: invalid UTF-8 in header" in refusal(folder)


def test_damaged_pickle(tmp_path: Path) -> None:
    folder = save_tiny_model(TINY, tmp_path, 5, bin=True)
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged" in refusal(folder)
    path.write_bytes(b"not a pickle at all")
    assert "is damaged" in refusal(folder)


def test_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    torch.save({"a": Payload()}, tmp_path / "pytorch_model.bin")
    assert "holds Python objects besides tensors, which are never unpickled" in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickle_that_is_a_training_state(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2)}, "step": 3}, tmp_path / "pytorch_model.bin")
    assert "holds more than named tensors; a state dict was expected" in refusal(tmp_path)


def test_missing_shards_and_lost_tensors(tmp_path: Path) -> None:
    folder = save_tiny_model(TINY, tmp_path, 5, sharded=True)
    (folder / "model-00002-of-00003.safetensors").rename(folder / "elsewhere")
    assert "lists 3 shards, of which 1 are not there: model-00002-of-00003.safetensors." in refusal(folder)
    save_file({"x": torch.zeros(1)}, folder / "model-00002-of-00003.safetensors")
    assert "tensors that no shard holds" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": []}', "{}", '{"weight_map": 3}'])
def test_index_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is no index of shards: expected JSON with a 'weight_map' object"):
        read_index(path)


def test_index_may_not_point_outside(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    with pytest.raises(UserError, match="not a plain file name beside it"):
        read_index(path)


def test_folder_without_weights(tmp_path: Path) -> None:
    expected = "expected one of model.safetensors, pytorch_model.bin, model.safetensors.index.json, "
    assert expected in refusal(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    assert "(found tf_model.h5: save the model from PyTorch with save_pretrained())" in refusal(tmp_path)
