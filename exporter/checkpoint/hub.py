"""Checkpoints on the hub: download what an export needs, pin the commit, fall back to the local cache."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.sentence_files import MODULES, encoder_folder, module_folders
from t5edge.exporter.checkpoint.stores import INDEX_FILES, WEIGHT_FILES, read_index

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
SMALL_FILES = (
    ADAPTER_CONFIG,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.model",
    "spm.model",
    MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 10.0
OFFLINE_HELP = "Offline: pass a checkpoint folder, or --random-weights SEED for a structural export."


@dataclass(frozen=True)
class Repository:
    """A hub repository at a branch, tag or commit (None: its main branch). ``subfolder``: where its weights lie.

    ``in_table``, ``hint`` ("Did you mean ...?") and ``help`` only shape the message when it cannot be had.
    """

    name: str
    revision: str | None = None
    in_table: bool = True
    hint: str = ""
    help: str = OFFLINE_HELP
    subfolder: str = ""

    @property
    def small_files(self) -> list[str]:
        """``SMALL_FILES`` where the weights lie, and where the tokenizer of a diffusers pipeline does."""
        tokenizer = self.subfolder.replace("text_encoder", "tokenizer", 1)
        return [
            self.inside(name, place) for place in dict.fromkeys((self.subfolder, tokenizer)) for name in SMALL_FILES
        ]

    def inside(self, name: str, place: str | None = None) -> str:
        """The path of a file in the subfolder, or in another ``place``."""
        folder = self.subfolder if place is None else place
        return f"{folder}/{name}" if folder else name


def download(repository: Repository, weights: bool = True) -> tuple[Path, str]:
    """The folder that holds the repository locally, and the commit it is at.

    Without network the local cache answers; a cached commit needs none. Interrupted downloads resume. Without
    ``weights``: config, generation settings and tokenizer only.

    Raises:
        UserError: unreachable, unknown, gated, or only partly in the cache.
    """
    with _hub_errors(repository):
        folder = _pinned_in_cache(repository, weights) or _download(repository, weights)
    return folder, folder.name


def to_download(repository: Repository) -> int:
    """Bytes of weights that ``download`` would fetch, about; 0 where the cache has them. Downloads nothing.

    Raises:
        UserError: as ``download``.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(repository):
        cached = _cached(repository)
        if cached is not None and _complete(cached / repository.subfolder):
            return 0
        HfApi().model_info(
            repository.name, revision=repository.revision, timeout=TIMEOUT_SECONDS
        )  # shows what is wrong
        entries = list(HfApi().list_repo_tree(repository.name, revision=repository.revision, recursive=True))
    sizes = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    for name in map(repository.inside, (*ADAPTER_FILES, *WEIGHT_FILES)):
        if name in sizes:
            return sizes[name]
    shards = {name: size for name, size in sizes.items() if name.startswith(repository.inside(""))}
    return next((found for end in (".safetensors", ".bin") if (found := _sum_of(shards, end))), 0)


def _sum_of(sizes: Mapping[str, int], end: str) -> int:
    return sum(size for name, size in sizes.items() if name.endswith(end))


def _download(repository: Repository, weights: bool) -> Path:
    from huggingface_hub import HfApi

    try:
        # This request is not retried, unlike those of a download: being offline shows at once.
        listing = HfApi().model_info(repository.name, revision=repository.revision, timeout=TIMEOUT_SECONDS)
    except _unreachable_errors() as error:
        return _from_cache(repository, weights, error)
    folder = _snapshot(repository, repository.small_files)
    pinned = replace(repository, revision=folder.name)
    listed = {file.rfilename for file in listing.siblings or []}
    places = tuple(f"{repository.inside(place)}/" for place in module_folders(folder / repository.subfolder))
    modules = sorted(name for name in listed if places and name.startswith(places))
    if modules:
        _snapshot(pinned, modules)
    if weights and not _complete(folder / repository.subfolder):
        _snapshot(pinned, _weight_files(pinned, folder, listed))
    return folder


def _pinned_in_cache(repository: Repository, weights: bool) -> Path | None:
    """The snapshot of a commit that is cached already: a commit never changes."""
    if not COMMIT.fullmatch(repository.revision or ""):
        return None
    folder = _cached(repository)
    return folder if folder is not None and (not weights or _complete(folder / repository.subfolder)) else None


def _from_cache(repository: Repository, weights: bool, error: Exception) -> Path:
    """What the cache holds, after ``error`` kept us from asking the hub.

    Raises:
        UserError: the cache has the repository without its weights. ``error`` itself: it has nothing.
    """
    folder = _cached(repository)
    if folder is None:
        raise error
    if weights and not _complete(folder / repository.subfolder):
        raise UserError(_unreachable(repository, "in the cache only without its weights")) from error
    return folder


def _cached(repository: Repository) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(repository, repository.small_files, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _complete(folder: Path) -> bool:
    """Whether a snapshot has its weights: an adapter's where it is one."""
    if (folder / ADAPTER_CONFIG).is_file():
        return any((folder / name).is_file() for name in ADAPTER_FILES)
    return has_weights(encoder_folder(folder))


def has_weights(folder: Path) -> bool:
    """Whether ``folder`` has one complete set of weights: a single file, or an index with all its shards."""
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return True
    indexes = [folder / name for name in INDEX_FILES if (folder / name).is_file()]
    return any(all((folder / shard).is_file() for shard in read_index(index).values()) for index in indexes)


def _weight_files(repository: Repository, folder: Path, listed: set[str]) -> Sequence[str]:
    """Names of the weight files to download: safetensors before ``torch.save``, one file before shards."""
    inside = repository.inside
    adapter = [inside(name) for name in ADAPTER_FILES if {inside(ADAPTER_CONFIG), inside(name)} <= listed]
    if adapter:
        return adapter[:1]
    for name, index in zip(map(inside, WEIGHT_FILES), map(inside, INDEX_FILES), strict=True):
        if name in listed:
            return [name]
        if index in listed:
            _snapshot(repository, [index])
            return sorted({inside(shard) for shard in read_index(folder / index).values()})
    raise UserError(
        f"'{repository.name}' holds no weights for PyTorch; expected one of {', '.join(WEIGHT_FILES + INDEX_FILES)}."
    )


def _snapshot(repository: Repository, files: Sequence[str], local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in files]
    return Path(
        snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
    )


@contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line each; the most specific class first."""
    from huggingface_hub import errors

    name, hint = repository.name, repository.hint
    unreachable = _unreachable_errors()
    try:
        yield
    except errors.GatedRepoError as error:
        advice = "accept its terms on its hub page and log in with 'hf auth login', or pass a checkpoint folder."
        raise UserError(f"'{name}' is gated: {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = hint or "Check the name, or pass a checkpoint folder."
        raise UserError(f"'{name}' is not on the hub, or is private and needs 'hf auth login'. {advice}") from error
    except errors.RevisionNotFoundError as error:
        advice = "Name a branch, tag or commit of its repository."
        raise UserError(f"'{name}' has no revision '{repository.revision}'. {advice}") from error
    except errors.HFValidationError as error:
        state = "not in the table, not a folder, and no hub id of the form 'organisation/name'"
        raise UserError(f"'{name}' is {state}. {hint} {repository.help}") from error
    except unreachable as error:
        raise UserError(_unreachable(repository, "not in the cache")) from error


def _unreachable(repository: Repository, cached: str) -> str:
    table = "" if repository.in_table else "not in the table, "
    state = f"{table}not a folder, {cached}, and the hub is unreachable."
    return " ".join(part for part in (f"'{repository.name}' is {state}", repository.hint, repository.help) if part)


def _unreachable_errors() -> tuple[type[Exception], ...]:
    """What the hub client raises when a connection fails or the server answers with an error."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    http_library_error = HfHubHTTPError.__bases__[0]
    assert issubclass(http_library_error, Exception)
    return (LocalEntryNotFoundError, http_library_error, ConnectionError, TimeoutError)
