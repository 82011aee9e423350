"""PEFT adapters, merged into a checkpoint while its tensors are read: one tensor is in memory at a time.

    open_adapter("./my-lora")                a folder that peft's save_pretrained() wrote
    open_adapter("someone/lora@v2")          a hub id, at a branch, tag or commit
    with_adapters(checkpoint, adapters)      the same model, changed by each in turn

What was trained is what counts. A tied output layer with an adapter of its own is no longer tied: merging in place, as
peft's ``merge_and_unload`` does, would change the embedding too, which the unmerged model does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.files import sha256_of
from t5edge.bundle.records import AdapterFacts
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.adapter_settings import MERGE_FIRST, AdapterSettings, read_settings
from t5edge.exporter.checkpoint.adapter_weights import BASE, PARTS, WHOLE, fits, merge
from t5edge.exporter.checkpoint.hub import ADAPTER_CONFIG, ADAPTER_FILES, Repository, download
from t5edge.exporter.checkpoint.names import OUTPUT_LAYER, SHARED
from t5edge.exporter.checkpoint.stores import FLOATS, FileStore, SafetensorsFormat, StoredTensor, TorchFormat, summary

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.checkpoint import Checkpoint

PREFIX = "base_model.model."
EMBEDDINGS = re.compile(r"(shared|(encoder|decoder)\.embed_tokens)$")
"""Modules that stand for one table under three names, of which peft changes one."""
OFFLINE_HELP = "Offline: pass the adapter's folder."


@dataclass(frozen=True)
class Adapter:
    """One adapter: its settings, its file, and by module the stored name of each part."""

    source: str
    revision: str | None
    settings: AdapterSettings
    sha256: str
    store: FileStore
    modules: Mapping[str, Mapping[str, str]]

    @property
    def facts(self) -> AdapterFacts:
        """What the manifest says of it."""
        kept = [module for module, parts in self.modules.items() if WHOLE not in parts]
        scales = sorted({self.settings.scale_of(module) for module in kept})
        whole = tuple(sorted(set(self.modules) - set(kept)))
        kind = "DORA" if self.settings.dora else self.settings.kind
        return AdapterFacts(self.source, self.revision, kind, self.sha256, tuple(scales), len(self.modules), whole)

    def shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        return {part: self.store.tensors[name].shape for part, name in self.modules[module].items()}

    def change(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight [out, in] of a module as the adapter has it, float32."""
        parts = {part: self.store.read(name) for part, name in self.modules[module].items()}
        return merge(self.settings.kind, weight, parts, self.settings.scale_of(module))


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def open_adapter(name: str) -> Adapter:
    """The adapter that ``name`` means: a folder, or a hub id, which may end in ``@revision``.

    Raises:
        UserError: nothing of that name, no network, a damaged file, or a form that cannot be merged exactly.
    """
    return adapter_in(*find_folder(name, "--adapter"))


def find_folder(name: str, flag: str) -> tuple[Path, str, str | None]:
    """The folder that ``name`` means, how it is called without a revision, and its commit on the hub.

    Raises:
        UserError: nothing of that name, or no network; ``flag`` is what it was given by.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, name, None
    repository, _, revision = name.partition("@")
    if name.startswith((".", "~", "/")) or "/" not in repository:
        raise UserError(f"'{name}' is not a folder; {flag} takes a folder with {ADAPTER_CONFIG}, or a hub id.")
    folder, commit = download(Repository(repository, revision or None, in_table=False, help=OFFLINE_HELP))
    return folder, repository, commit


def adapter_in(folder: Path, source: str, revision: str | None = None) -> Adapter:
    """The adapter in ``folder``; ``source`` and ``revision`` are how it was named.

    Raises:
        UserError: see ``open_adapter``.
    """
    if not is_adapter(folder):
        raise UserError(f"'{source}' has no {ADAPTER_CONFIG}; --adapter takes what peft's save_pretrained() wrote.")
    settings = read_settings(folder)
    path = weights_in(folder, source, settings.base)
    store = open_weights(path)
    return Adapter(source, revision, settings, sha256_of(path), store, _modules(settings, store, source))


def weights_in(folder: Path, source: str, base: str | None) -> Path:
    """The file of an adapter's weights. Raises: UserError when there is none; ``base`` is the model it names."""
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        named = f"a PEFT adapter of '{base or 'an unnamed model'}'"
        raise UserError(f"'{source}' is {named} without its weights; expected {' or '.join(ADAPTER_FILES)} in it.")
    return path


def open_weights(path: Path) -> FileStore:
    return FileStore([path], SafetensorsFormat() if path.suffix == ".safetensors" else TorchFormat())


def _modules(settings: AdapterSettings, store: FileStore, source: str) -> dict[str, dict[str, str]]:
    """Module -> part -> stored name.

    Raises:
        UserError: tensors that are neither a part of this type of adapter nor a whole weight.
    """
    pattern = re.compile(rf"{re.escape(PREFIX)}(.+?)\.({'|'.join((*PARTS[settings.kind], BASE, WHOLE))})(\.weight)?")
    found: dict[str, dict[str, str]] = {}
    unknown = []
    for name, tensor in store.tensors.items():
        match = pattern.fullmatch(name)
        if match is None or tensor.dtype not in FLOATS:
            unknown.append(name)
        else:
            found.setdefault(match[1], {})[match[2]] = name
    tables = [module for module in found if EMBEDDINGS.search(module)]
    if tables or unknown:
        known = f"changes {summary(tables or unknown)}, which is not merged here"
        raise UserError(f"the adapter '{source}' ({settings.kind}) {known}: {MERGE_FIRST}")
    return found


class AdaptedTensors:
    """The tensors of a checkpoint under their canonical names, as an adapter changes them."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        self.tensors = {name: StoredTensor(base.shape(name), base.dtype(name)) for name in base.names()}
        for module in adapter.modules:
            name = f"{module}.weight"
            self.tensors[name] = StoredTensor(base.shape(_stored(base, name)), "float32")

    def read(self, name: str) -> torch.Tensor:
        """[out, in] on the CPU: changed ones in float32, the others as the base has them."""
        weight = self._base.read(_stored(self._base, name))
        module = name.removesuffix(".weight")
        return self._adapter.change(module, weight) if module in self._adapter.modules else weight

    def fingerprint(self) -> Any:
        settings = replace(self._adapter.settings, base=None, base_revision=None)
        return [self._base.content_key(), self._adapter.sha256, str(settings)]


def _stored(base: Checkpoint, name: str) -> str:
    """Where the base keeps a weight: a tied output layer is the embedding."""
    return SHARED if name == OUTPUT_LAYER and base.architecture.tied else name


def with_adapters(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """``checkpoint`` as the adapters change it, one after the other.

    Raises:
        UserError: an adapter of another model.
    """
    for adapter in adapters:
        _require_fit(checkpoint, adapter)
        architecture = checkpoint.architecture
        if OUTPUT_LAYER.removesuffix(".weight") in adapter.modules:
            architecture = replace(architecture, tied=False)
        tensors = AdaptedTensors(checkpoint, adapter)
        checkpoint = checkpoint.derived(tensors, architecture, adapters=(*checkpoint.adapters, adapter.facts))
    return checkpoint


def _require_fit(base: Checkpoint, adapter: Adapter) -> None:
    """Raises: UserError with everything about the adapter that ``base`` has no place for."""
    known, unknown, wrong = set(base.names()), [], []
    for module in adapter.modules:
        name = _stored(base, f"{module}.weight")
        if name not in known:
            unknown.append(module)
            continue
        shapes, rank = adapter.shapes(module), adapter.settings.rank_of(module)
        if not fits(adapter.settings.kind, shapes, base.shape(name), rank):
            sizes = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())
            wrong.append(f"{module} is {list(base.shape(name))}, the adapter has {sizes} at rank {rank}")
    problems = [f"{len(unknown)} unknown modules: {summary(unknown)}"] if unknown else []
    problems += [f"{len(wrong)} of another shape: {summary(wrong, 1)}"] if wrong else []
    if not adapter.modules:
        problems = ["it holds no weights"]
    if problems:
        made = f" (it names '{adapter.settings.base}')" if adapter.settings.base else ""
        raise UserError(
            f"the adapter '{adapter.source}' does not fit '{base.source}': {'; '.join(problems)}. "
            f"Name the model that it was trained on{made}."
        )
