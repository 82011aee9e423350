"""A T5 checkpoint as the exporter sees it: facts, and tensors read one at a time."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.records import AdapterFacts, PromptFacts
from t5edge.bundle.schema import plain
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.names import NamedTensors, name_tensors
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.checkpoint.sentence import SentenceModules
from t5edge.exporter.checkpoint.stores import FileStore, StoredTensor, Tensors, TensorStore, summary
from t5edge.exporter.checkpoint.vocabulary import Vocabulary
from t5edge.exporter.family.config import require_ids
from t5edge.runtime.generation.options import SETTINGS

if TYPE_CHECKING:
    import torch

PIPELINE_ENCODER = "text_encoder"
"""How the folders of text encoders begin in a diffusers pipeline."""
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
        sentence: SentenceModules | None = None,
    ) -> None:
        """``expected``: the table's facts, where it has the source; what differs goes to ``differences``.

        ``sentence``: what makes sentence embeddings of its encoder's output.

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
        self.adapters: tuple[AdapterFacts, ...] = ()
        self.prompts: tuple[PromptFacts, ...] = ()
        self.vocabulary: Vocabulary | None = None
        self.sentence = sentence
        self._store: Tensors = store
        self._stored_names = named.stored_names

    def derived(self, tensors: Tensors, architecture: Architecture, **changes: Any) -> Checkpoint:
        """The same checkpoint with other tensors under canonical names; ``changes``: other attributes."""
        names = {name: name for name in architecture.tensor_shapes()}
        other = copy.copy(self)
        vars(other).update(changes, architecture=architecture, _store=tensors, _stored_names=names)
        return other

    def without_sentence(self) -> Checkpoint:
        """A view of the same checkpoint that makes no sentence embeddings."""
        other = copy.copy(self)
        other.sentence = None
        return other

    def encoder_alone(self) -> Checkpoint:
        """A view of the same checkpoint without decoder and output layer."""
        architecture = self.architecture.without_decoder()
        other = copy.copy(self)
        names = {name: self._stored_names[name] for name in architecture.tensor_shapes()}
        vars(other).update(architecture=architecture, _stored_names=names)
        return other

    def names(self) -> list[str]:
        """Canonical names, exactly those of ``architecture.tensor_shapes()`` and in its order."""
        return list(self._stored_names)

    def weight_names(self) -> list[str]:
        """The names of all that a bundle stores: ``names``, and those of weights behind a pooling."""
        return [*self._stored_names, *([] if self.sentence is None else self.sentence.tensors)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> str:
        """``float32``, ``float16``, ``bfloat16`` or ``float64``, as stored."""
        return self._tensor(name).dtype

    def _tensor(self, name: str) -> StoredTensor:
        if self.sentence is not None and name in self.sentence.tensors:
            return self.sentence.tensors[name]
        return self._store.tensors[self._stored_names[name]]

    def read(self, name: str) -> torch.Tensor:
        """The tensor, ``[out, in]``, on the CPU in its stored dtype.

        Mapped, not copied, where the file allows it: do not write into it. Dropping it frees the memory.
        """
        if self.sentence is not None and name in self.sentence.tensors:
            return self.sentence.read(name)
        return self._store.read(self._stored_names[name])

    def read_slices(self, name: str, size: int) -> Iterator[torch.Tensor]:
        """``read`` in slices of about ``size`` bytes of rows; of a safetensors file only one is in memory at a time."""
        import torch

        store, tensor = self._store, self._tensor(name)
        row_bytes = math.prod(tensor.shape[1:]) * getattr(torch, tensor.dtype).itemsize
        step = max(1, size // max(1, row_bytes))
        if not isinstance(store, FileStore) or name not in self._stored_names:
            yield from self.read(name).split(step)
            return
        for start in range(0, tensor.shape[0], step):
            yield store.read(self._stored_names[name], range(start, min(start + step, tensor.shape[0])))

    def content_key(self) -> str:
        """A hash that changes when config or weights may have changed; reads no weights."""
        tensors = self._store.tensors
        shapes = sorted((name, list(entry.shape), entry.dtype) for name, entry in tensors.items())
        facts = [self.config, shapes, self._store.fingerprint()]
        if self.sentence is not None:
            facts += [plain(self.sentence.facts), self.sentence.fingerprint()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer's files are: with the weights, or, of a diffusers pipeline, in the folder beside them.

        ``text_encoder_2`` has ``tokenizer_2``.
        """
        folder = self.folder
        if folder is None or not folder.name.startswith(PIPELINE_ENCODER):
            return folder
        beside = folder.with_name(folder.name.replace(PIPELINE_ENCODER, "tokenizer", 1))
        return beside if beside.is_dir() else folder

    def file(self, name: str) -> Path | None:
        """The file called ``name`` in the folder of the checkpoint or of its tokenizer, if there is one."""
        places = [place / name for place in (self.tokenizer_folder, self.folder) if place is not None]
        return next((path for path in places if path.is_file()), None)

    def tokenizer_file(self) -> Path | None:
        """``tokenizer.json``, if the checkpoint has one."""
        return self.file("tokenizer.json")


def read_json(path: Path) -> dict[str, Any]:
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
        settings = read_json(path)
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
