"""A T5 checkpoint as the exporter sees it: facts, and tensors read one at a time.

    open_checkpoint("google/flan-t5-small")            a name in the table or a hub id
    open_checkpoint("./my-model")                      a folder written by transformers
    open_checkpoint("t5-demo")                         the trained model that ships with the package
    open_checkpoint("t5-11b", random_weights=0)        the structure alone

The raw ``config.json`` and the names of the tensors are the truth; the table of variants is compared with
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import Architecture
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.hub import Repository, download, has_weights
from t5edge.exporter.checkpoint.names import NamedTensors, name_tensors
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.checkpoint.recognize import require_checkpoint, require_generator, require_tensors, unwrapped
from t5edge.exporter.checkpoint.stores import TensorStore, open_folder_store, summary
from t5edge.exporter.family.config import architecture_from_config, require_ids
from t5edge.exporter.family.variants import DEMO_FOLDER, DEMO_NAME, Variant, find_variant, look_up_variant, suggestion
from t5edge.runtime.generation.options import SETTINGS

if TYPE_CHECKING:
    import torch

GENERATION_KEYS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")


class Checkpoint:
    """One model: its raw config, the facts read from it, and its tensors under transformers' names."""

    def __init__(
        self,
        source: str,
        config: Mapping[str, Any],
        store: TensorStore,
        *,
        folder: Path | None = None,
        revision: str | None = None,
        expected: Architecture | None = None,
    ) -> None:
        """``expected``: the table's facts, where it has the source; what differs goes to ``differences``.

        Raises:
            UserError: the tensors do not fit the config.
        """
        named: NamedTensors = name_tensors(config, store, source)
        self.source = source
        self.config = dict(config)
        self.architecture = named.architecture
        self.folder = folder
        self.revision = revision
        self.differences = _differences(expected, named)
        self.generation_config = _generation_config(self.config, folder)
        self.random = isinstance(store, RandomStore)
        self._store = store
        self._stored_names = named.stored_names

    def names(self) -> list[str]:
        """Canonical names, exactly those of ``architecture.tensor_shapes()`` and in its order."""
        return list(self._stored_names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._store.tensors[self._stored_names[name]].shape

    def dtype(self, name: str) -> str:
        """``float32``, ``float16``, ``bfloat16`` or ``float64``, as stored."""
        return self._store.tensors[self._stored_names[name]].dtype

    def read(self, name: str) -> torch.Tensor:
        """The tensor, ``[out, in]``, on the CPU in its stored dtype.

        Mapped, not copied, where the file allows it: do not write into it. Dropping it frees the memory.
        """
        return self._store.read(self._stored_names[name])

    def content_key(self) -> str:
        """A hash that changes when config or weights may have changed; reads no weights."""
        tensors = self._store.tensors
        shapes = sorted((name, list(entry.shape), entry.dtype) for name, entry in tensors.items())
        facts = [self.config, shapes, self._store.fingerprint()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def file(self, name: str) -> Path | None:
        """The file called ``name`` in the checkpoint's folder, if there is one."""
        path = self.folder / name if self.folder is not None else None
        return path if path is not None and path.is_file() else None

    def tokenizer_file(self) -> Path | None:
        """``tokenizer.json``, if the checkpoint has one."""
        return self.file("tokenizer.json")


def open_checkpoint(variant: str, *, random_weights: int | None = None, revision: str | None = None) -> Checkpoint:
    """The checkpoint that ``variant`` names: a folder, ``t5-demo``, a name in the table, or a hub id.

    A folder of that name that holds a checkpoint comes before the hub. ``random_weights`` is the seed of
    weights drawn for the variant's structure; ``revision`` is a branch, tag or commit on the hub.

    Raises:
        UserError: nothing of that name, no network, or a damaged, incomplete or foreign checkpoint.
    """
    folder = _as_path(variant)
    row = look_up_variant(variant)
    if random_weights is not None:
        return _open_random(variant, folder, row, random_weights, revision)
    if variant == DEMO_NAME:
        return _open_folder(DEMO_NAME, DEMO_FOLDER)
    if _is_checkpoint(folder) or (row is None and _is_path(variant)):
        return _open_folder(variant, folder, expected=row)
    repository = _repository(variant, row, revision)
    folder, commit = download(repository)
    return _open_folder(repository.name, folder, commit, expected=row)


def _open_random(variant: str, folder: Path, row: Variant | None, seed: int, revision: str | None) -> Checkpoint:
    """Structure from a folder's config, the table, or the config on the hub; weights from ``seed``."""
    commit = None
    named_folder = variant != DEMO_NAME and _is_checkpoint(folder)
    if named_folder or (row is None and _is_path(variant)):
        config = _read_json(folder / "config.json")
    elif row is not None:
        config = row.config()
    else:
        folder, commit = download(_repository(variant, row, revision), weights=False)
        config = _read_json(folder / "config.json")
    names = open_folder_store(folder).tensors if named_folder else None
    store = RandomStore(architecture_from_config(config, names), seed)
    return Checkpoint(variant if row is None else row.name, config, store, revision=commit)


def _repository(variant: str, row: Variant | None, revision: str | None) -> Repository:
    """Raises: UserError when a name without organisation is not in the table."""
    if row is not None:
        return Repository(row.name, revision)
    if "/" not in variant:
        find_variant(variant)
    return Repository(variant, revision, in_table=False, hint=suggestion(variant))


def _open_folder(source: str, folder: Path, commit: str | None = None, expected: Variant | None = None) -> Checkpoint:
    if not folder.is_dir():
        raise UserError(
            f"'{source}' is not a folder. Pass a checkpoint folder, a hub id, or a name from 't5edge variants'."
        )
    require_checkpoint(folder)
    config = _read_json(folder / "config.json")
    architecture_from_config(config)  # a foreign model is refused before its weights are read
    store = unwrapped(open_folder_store(folder))
    require_tensors(store, source)
    require_generator(config, store.tensors, source)
    facts = expected.architecture if expected is not None else None
    return Checkpoint(source, config, store, folder=folder, revision=commit, expected=facts)


def _as_path(variant: str) -> Path:
    """The path that ``variant`` would be, be it one or not."""
    try:
        folder = Path(variant).expanduser()
        folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a zero byte, no such user
        reason = str(error)[:80]
        raise UserError(f"'{variant[:80]}' is no variant: {reason}; pass a folder, a hub id, or a name.") from error
    return folder


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and has_weights(folder)


def _is_path(variant: str) -> bool:
    """Spelled as a path, or an existing folder: never a hub id."""
    return variant.startswith((".", "~", "/")) or variant.count("/") > 1 or "\\" in variant or Path(variant).is_dir()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} is missing; a checkpoint folder holds config.json and the weights (save_pretrained() writes both)."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; expected an object. Copy or download it again.")
    return content


def _generation_config(config: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """``generation_config.json`` over the token ids of ``config.json``; T5 starts decoding with padding.

    Without that file the settings in ``config.json`` hold, as in transformers' ``GenerationConfig.from_model_config``.
    """
    path = folder / "generation_config.json" if folder is not None else None
    if path is not None and path.is_file():
        settings = _read_json(path)
    else:
        settings = {name: config[name] for name in sorted(SETTINGS) if config.get(name) is not None}
    facts = {key: config[key] for key in GENERATION_KEYS if config.get(key) is not None}
    defaults = {"decoder_start_token_id": facts.get("pad_token_id", 0), "eos_token_id": 1, "pad_token_id": 0}
    merged = {**defaults, **facts, **settings}
    require_ids(merged, config["vocab_size"], "generation settings")
    return merged


def _differences(expected: Architecture | None, named: NamedTensors) -> list[str]:
    """For the user to read: where the checkpoint and the table differ, and which tensors are left out."""
    lines = [f"ignored tensors: {summary(named.ignored)}"] if named.ignored else []
    if expected is None:
        return lines
    found, table = named.architecture.to_dict(), expected.to_dict()
    return [f"{key}: table {table[key]}, checkpoint {found[key]}" for key in table if table[key] != found[key]] + lines
