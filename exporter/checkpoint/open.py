"""Checkpoints by their names.

    open_checkpoint("google/flan-t5-small")            a name in the table or a hub id
    open_checkpoint("./my-model")                      a folder written by transformers
    open_checkpoint("t5-demo")                         the trained model that ships with the package
    open_checkpoint("t5-11b", random_weights=0)        the structure alone
    open_checkpoint("./my-lora")                       a PEFT adapter, merged into the model that it names
    open_checkpoint("./flux", subfolder="text_encoder_2")                      a part of a diffusers pipeline
    open_checkpoint("sentence-transformers/sentence-t5-base")                  an encoder, pooling and dense layers

The raw ``config.json`` and the names of the tensors are the truth; the table of variants is compared with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.adapter_settings import base_of, is_prompt, read_config
from t5edge.exporter.checkpoint.adapters import adapter_in, is_adapter, open_adapter, with_adapters
from t5edge.exporter.checkpoint.checkpoint import Checkpoint, read_json
from t5edge.exporter.checkpoint.hub import Repository, download, has_weights
from t5edge.exporter.checkpoint.prompts import open_prompt, prompt_in, with_prompts
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.checkpoint.recognize import require_checkpoint, require_generator, require_tensors, unwrapped
from t5edge.exporter.checkpoint.sentence_files import MODULES, encoder_folder, read_modules
from t5edge.exporter.checkpoint.stores import open_folder_store
from t5edge.exporter.checkpoint.trimmed import Wanted, choose_vocabulary, stored_vocabulary, with_vocabulary
from t5edge.exporter.family.config import architecture_from_config
from t5edge.exporter.family.variants import DEMO_FOLDER, DEMO_NAME, Variant, find_variant, look_up_variant, suggestion

__all__ = ["Checkpoint", "check_name", "names_adapter", "on_the_hub", "open_checkpoint"]


def open_checkpoint(
    variant: str,
    *,
    random_weights: int | None = None,
    revision: str | None = None,
    adapters: Sequence[str] = (),
    prompts: Sequence[str] = (),
    vocabulary: Wanted | Path | None = None,
    task: str | None = None,
    subfolder: str | None = None,
) -> Checkpoint:
    """The checkpoint that ``variant`` names: a folder, ``t5-demo``, a name in the table, or a hub id.

    A folder of that name that holds a checkpoint comes before the hub. ``random_weights`` is the seed of
    weights drawn for the variant's structure; ``revision`` is a branch, tag or commit on the hub. ``adapters`` (see
    ``adapters.open_adapter``) are merged in their order; an adapter as ``variant`` comes first, on the model it names.
    ``prompts`` (see ``prompts.open_prompt``) are put beside it, and may be such a ``variant`` too.
    ``vocabulary``: only the pieces that a corpus or languages need, or those that a bundle's ``vocabulary.json`` lists.
    ``subfolder``: where inside the folder or repository the checkpoint lies.
    ``task``: ``encode`` leaves out the decoder, ``generate`` insists on one; None takes what the checkpoint holds, of a
    model of sentence-transformers the encoder.

    Raises:
        UserError: nothing of that name, no network, or a damaged, incomplete or foreign checkpoint or adapter.
    """
    opened, learnt = [open_adapter(name) for name in adapters], [open_prompt(given) for given in prompts]
    checkpoint = _for_task(with_adapters(_open(variant, random_weights, revision, subfolder or ""), opened), task)
    checkpoint = with_prompts(checkpoint, learnt)
    if vocabulary is None:
        return checkpoint
    if isinstance(vocabulary, Wanted):
        return with_vocabulary(checkpoint, choose_vocabulary(checkpoint, vocabulary))
    return with_vocabulary(checkpoint, stored_vocabulary(checkpoint, vocabulary))


def on_the_hub(variant: str, revision: str | None = None, subfolder: str | None = None) -> Repository | None:
    """The repository that ``open_checkpoint`` would read; None where ``variant`` names something on this machine.

    Raises:
        UserError: nothing can have that name.
    """
    row, folder = look_up_variant(variant), _as_path(variant) / (subfolder or "")
    if variant == DEMO_NAME or _is_checkpoint(folder) or (row is None and _is_path(variant)):
        return None
    return replace(_repository(variant, row, revision), subfolder=subfolder or "")


def check_name(variant: str, revision: str | None = None, subfolder: str | None = None) -> None:
    """Refuse a name that ``open_checkpoint`` would refuse, as far as that shows without torch and the network.

    Raises:
        UserError: nothing of that name; or the hub is switched off (``HF_HUB_OFFLINE``) and the cache lacks it.
    """
    from huggingface_hub import constants

    repository = on_the_hub(variant, revision, subfolder)
    if repository is not None and constants.HF_HUB_OFFLINE:
        download(repository)


def names_adapter(variant: str) -> bool:
    """Whether ``variant`` is the folder of a PEFT adapter, which ``open_checkpoint`` merges into the model it names.

    Raises:
        UserError: no path can be spelled so.
    """
    return is_adapter(_as_path(variant))


def _for_task(checkpoint: Checkpoint, task: str | None) -> Checkpoint:
    """Raises: UserError for an encoder alone that shall generate."""
    if task == "generate" and not checkpoint.architecture.encoder_alone:
        return checkpoint.without_sentence()
    if task == "generate" and checkpoint.architecture.encoder_alone:
        raise UserError(f"'{checkpoint.source}' is an encoder without a decoder and generates nothing; --task encode.")
    return checkpoint.encoder_alone() if task == "encode" or checkpoint.sentence is not None else checkpoint


def _open(variant: str, random_weights: int | None, revision: str | None, subfolder: str = "") -> Checkpoint:
    folder = _as_path(variant)
    row = look_up_variant(variant)
    if subfolder and (random_weights is not None or variant == DEMO_NAME):
        raise UserError("--subfolder names weights inside a folder or repository; leave it out here.")
    if subfolder and folder.is_dir() and not (folder / subfolder).is_dir():
        raise UserError(f"'{variant}' has no folder '{subfolder}'; name one that it has with --subfolder.")
    if random_weights is not None:
        return _open_random(variant, folder, row, random_weights, revision)
    if variant == DEMO_NAME:
        return _open_folder(DEMO_NAME, DEMO_FOLDER)
    repository = on_the_hub(variant, revision, subfolder)
    if repository is None:
        return _open_folder(variant, folder / subfolder, expected=row)
    folder, commit = download(repository)
    return _open_folder(repository.name, folder / subfolder, commit, expected=row)


def _open_random(variant: str, folder: Path, row: Variant | None, seed: int, revision: str | None) -> Checkpoint:
    """Structure from a folder's config, the table, or the config on the hub; weights from ``seed``."""
    if is_adapter(folder):
        raise UserError(f"'{variant}' is a PEFT adapter; with --random-weights name its base model.")
    commit = None
    named_folder = variant != DEMO_NAME and _is_checkpoint(folder)
    if named_folder or (row is None and _is_path(variant)):
        config = read_json(folder / "config.json")
    elif row is not None:
        config = row.config()
    else:
        folder, commit = download(_repository(variant, row, revision), weights=False)
        config = read_json(folder / "config.json")
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
    if is_adapter(folder):
        return _open_adapted(source, folder, commit)
    encoder = encoder_folder(folder)
    require_checkpoint(encoder)
    config = read_json(encoder / "config.json")
    architecture = architecture_from_config(config)  # a foreign model is refused before its weights are read
    store = unwrapped(open_folder_store(encoder))
    require_tensors(store, source)
    require_generator(config, store.tensors, source)
    facts = expected.architecture if expected is not None else None
    modules = read_modules(folder, source, architecture.d_model)
    return Checkpoint(source, config, store, folder=encoder, revision=commit, expected=facts, sentence=modules)


def _open_adapted(source: str, folder: Path, commit: str | None) -> Checkpoint:
    """The model that the adapter in ``folder`` names as its base, with the adapter merged or the prompt put beside it.

    Raises:
        UserError: it names none that can be opened, or another adapter.
    """
    learnt = is_prompt(folder)
    name = PurePath(source).name or folder.resolve().name
    prompts = [prompt_in(name, folder, source, commit)] if learnt else []
    adapters = [] if learnt else [adapter_in(folder, source, commit)]
    base, what = base_of(folder), "prompt as --prompt NAME=DIR" if learnt else "adapter as --adapter"
    advice = f"name its base model as --variant and the {what}."
    if base is None or base == source or is_adapter(_as_path(base)):
        named = "of an adapter" if base else "that names no model"
        raise UserError(f"'{source}' is a PEFT adapter {named}; {advice}")
    try:
        checkpoint = _open(base, None, (read_config(folder) or {}).get("revision") or None)
    except UserError as error:
        named = f"'{source}' is a PEFT adapter of '{base}', which cannot be opened"
        raise UserError(f"{named}; {advice} {error}") from error
    return with_prompts(with_adapters(checkpoint, adapters), prompts)


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
    if (folder / MODULES).is_file():
        return True
    return is_adapter(folder) or ((folder / "config.json").is_file() and has_weights(folder))


def _is_path(variant: str) -> bool:
    """Spelled as a path, or an existing folder: never a hub id."""
    return variant.startswith((".", "~", "/")) or variant.count("/") > 1 or "\\" in variant or Path(variant).is_dir()
