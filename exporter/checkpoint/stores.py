"""Tensors of a checkpoint folder or of a seed, read one at a time.

A store knows names, shapes and dtypes without holding any weights; ``read`` maps one tensor from disk
(safetensors, ``torch.save`` files) or draws it (random weights). Nothing is ever unpickled beyond plain
tensors.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from t5edge.errors import UserError, printable

if TYPE_CHECKING:
    import torch

SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Spelling in a safetensors header -> torch's; other dtypes keep their spelling and are refused later."""
FLOATS = frozenset(SAFETENSORS_DTYPES.values())
"""The dtypes that a weight may have."""
ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: shape ``[out, in]`` as transformers stores it, dtype in torch's spelling."""

    shape: tuple[int, ...]
    dtype: str
    file: Path | None = None


class Tensors(Protocol):
    """Named tensors."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Name -> shape, dtype and file."""

    def read(self, name: str) -> torch.Tensor:
        """The tensor on the CPU in its stored dtype; mapped from disk where the format allows it."""

    def fingerprint(self) -> Any:
        """JSON-able facts that change whenever the weights may have changed; costs no read of the weights."""


class TensorStore(Tensors, Protocol):
    """Tensors under the names they are stored with, before it is settled what each is."""

    def same_values(self, first: str, second: str) -> bool:
        """Whether two tensors ``[rows, columns]`` are equal."""


class ShardFormat(Protocol):
    """One file format: what a file holds, and one tensor of it."""

    def describe(self, path: Path) -> dict[str, StoredTensor]: ...

    def read(self, path: Path, name: str, tensor: StoredTensor, rows: range | None = None) -> torch.Tensor: ...


class SafetensorsFormat:
    """Headers are read and checked by the safetensors package, which refuses overlaps, holes and sizes that do not fit.

    Tensors are mapped one by one: the package maps whole files for torch, which Linux refuses for one larger than the
    memory, and copies what it reads for numpy.
    """

    def __init__(self) -> None:
        self._offsets: dict[Path, dict[str, int]] = {}

    def describe(self, path: Path) -> dict[str, StoredTensor]:
        """Raises: UserError when the file is no safetensors file, or its header and its data do not fit together."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.offset_keys()}
                facts = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")[:160]
            raise UserError(
                f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {printable(reason)}. Copy or download "
                "it again; a file of about 130 bytes is a git-lfs pointer: run 'git lfs pull'."
            ) from error
        lengths = [math.prod(shape) * _bits(dtype) // 8 for shape, dtype in facts.values()]
        begin = path.stat().st_size - sum(lengths)
        ends = itertools.accumulate(lengths, initial=begin)
        self._offsets[path] = dict(zip(facts, ends, strict=False))
        return {
            name: StoredTensor(shape, SAFETENSORS_DTYPES.get(dtype, dtype), path)
            for name, (shape, dtype) in facts.items()
        }

    def read(self, path: Path, name: str, tensor: StoredTensor, rows: range | None = None) -> torch.Tensor:
        """Maps this tensor, or these rows of it, alone, so that its pages leave memory with it."""
        import torch

        dtype, shape, first = getattr(torch, tensor.dtype), tensor.shape, 0
        if rows is not None:
            shape, first = (len(rows), *shape[1:]), rows.start * math.prod(shape[1:])
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        begin = self._offsets[path][name] + first * dtype.itemsize
        page = begin - begin % mmap.ALLOCATIONGRANULARITY
        with path.open("rb") as file:
            length = begin + count * dtype.itemsize - page
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=page)
        return torch.frombuffer(pages, dtype=dtype, count=count, offset=begin - page).view(shape)


def _bits(dtype: str) -> int:
    """Bits of one number: they are part of the dtype's name (F32, BF16, F8_E4M3), but for BOOL."""
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) if digits else 8


class TorchFormat:
    """``torch.save`` files, loaded with ``weights_only=True``; the latest file stays mapped."""

    def __init__(self) -> None:
        self._mapped: tuple[Path, dict[str, torch.Tensor]] | None = None

    def describe(self, path: Path) -> dict[str, StoredTensor]:
        """Raises: UserError when the file is damaged or holds anything but a dict of tensors."""
        return {
            name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), path)
            for name, tensor in self._load(path).items()
        }

    def read(self, path: Path, name: str, tensor: StoredTensor, rows: range | None = None) -> torch.Tensor:
        whole = self._load(path)[name]
        return whole if rows is None else whole[rows.start : rows.stop]

    def _load(self, path: Path) -> dict[str, torch.Tensor]:
        if self._mapped is None or self._mapped[0] != path:
            self._mapped = None
            self._mapped = (path, self._tensors(path))
        return self._mapped[1]

    def _tensors(self, path: Path) -> dict[str, torch.Tensor]:
        import torch

        content = self._unpickle_tensors(path)
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise UserError(
                f"{path} holds more than named tensors; a state dict was expected. "
                "Save it with transformers' save_pretrained() and try again."
            )
        return {str(name): tensor.detach() for name, tensor in content.items()}

    def _unpickle_tensors(self, path: Path) -> object:
        import pickle
        import zipfile

        import torch

        # Files from before torch 1.6 are no zip archives and cannot be mapped: they are read into memory.
        mappable = zipfile.is_zipfile(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is damaged, or holds Python objects besides tensors, which are never unpickled. "
                "Download it again, or convert the checkpoint to safetensors where you trust it."
            ) from error
        except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError) as error:
            if "unable to mmap" in str(error):
                size = path.stat().st_size / 1e9
                raise UserError(
                    f"{path} has {size:.0f} GB, more than fits in memory, and torch maps such files whole. "
                    "Save the checkpoint as safetensors, or in shards (save_pretrained(max_shard_size='5GB'))."
                ) from error
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is damaged ({printable(reason)}). Copy or download it again.") from error


class FileStore:
    """Tensors spread over one or more files of one format."""

    def __init__(self, files: list[Path], shard_format: ShardFormat) -> None:
        self._format = shard_format
        self._files = files
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            self.tensors |= shard_format.describe(file)

    def read(self, name: str, rows: range | None = None) -> torch.Tensor:
        """``[out, in]`` in the stored dtype, or these rows of it."""
        tensor = self.tensors[name]
        assert tensor.file is not None
        return self._format.read(tensor.file, name, tensor, rows)

    def same_values(self, first: str, second: str) -> bool:
        """Whether two float tensors ``[rows, columns]`` are equal; stops at the first differing rows."""
        import torch

        if self.tensors[first].shape != self.tensors[second].shape:
            return False
        a, b = self.read(first), self.read(second)
        if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
            return True
        steps = range(0, a.shape[0], ROWS_AT_A_TIME)
        return all(torch.equal(a[row : row + ROWS_AT_A_TIME], b[row : row + ROWS_AT_A_TIME]) for row in steps)

    def fingerprint(self) -> Any:
        stats = [(file.name, file.stat()) for file in self._files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = tuple(f"{name}.index.json" for name in WEIGHT_FILES)
"""In order of preference: safetensors before pickled files."""


def open_folder_store(folder: Path) -> FileStore:
    """The weights of a checkpoint folder: safetensors before ``torch.save``, one file before shards.

    Raises:
        UserError: no weights, a damaged file, or an index that names files or tensors which are not there.
    """
    for name, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        shard_format: ShardFormat = SafetensorsFormat() if name.endswith(".safetensors") else TorchFormat()
        if (folder / name).is_file():
            return FileStore([folder / name], shard_format)
        if (folder / index).is_file():
            return _open_sharded(folder / index, shard_format)
    others = sorted(
        file.name for file in folder.glob("*") if file.suffix in (".h5", ".msgpack", ".ckpt", ".onnx", ".gguf")
    )
    found = f" (found {', '.join(others)}: save the model from PyTorch with save_pretrained())" if others else ""
    raise UserError(f"{folder} holds no weights{found}; expected one of {', '.join(WEIGHT_FILES + INDEX_FILES)}.")


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file, from a ``*.index.json``.

    Raises:
        UserError: the file is not such an index, or a shard lies outside the folder.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is no index of shards: expected JSON with a 'weight_map' object. Download it again."
        ) from error
    outside = sorted({shard[:80] for shard in shards.values() if Path(shard).name != shard or len(shard) > 255})
    if outside:
        raise UserError(f"{path} names '{outside[0]}', which is not a plain file name beside it. Refusing to read it.")
    return shards


def _open_sharded(index: Path, shard_format: ShardFormat) -> FileStore:
    shards = read_index(index)
    files = [index.parent / shard for shard in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{index} lists {len(files)} shards, of which {len(missing)} are not there: "
            f"{summary(missing)}. Copy or download them."
        )
    store = FileStore(files, shard_format)
    lost = sorted(shards.keys() - store.tensors.keys())
    if lost:
        raise UserError(
            f"{index} lists {len(lost)} tensors that no shard holds: {summary(lost)}. Download the shards again."
        )
    return store


def summary(items: list[str], limit: int = 4) -> str:
    """The first few of ``items`` and how many more there are."""
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
