"""Checkpoints on the hub: download what an export needs, pin the commit, fall back to the local cache."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.checkpoint_stores import INDEX_FILES, WEIGHT_FILES, read_index
from exporter.errors import UserError

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.model",
    "spm.model",
)
OFFLINE_HELP = "Offline: pass a checkpoint folder, or --random-weights SEED for a structural export."


@dataclass(frozen=True)
class Repository:
    """A hub repository at a branch, tag or commit (None: its main branch).

    ``in_table`` and ``hint`` ("Did you mean ...?") only shape the message when it cannot be had.
    """

    name: str
    revision: str | None = None
    in_table: bool = True
    hint: str = ""


def download(repository: Repository, weights: bool = True) -> tuple[Path, str]:
    """The folder that holds the repository locally, and the commit it is at.

    Without network the local cache answers. Interrupted downloads resume. Without ``weights``: config,
    generation settings and tokenizer only.

    Raises:
        UserError: unreachable, unknown, gated, or only partly in the cache.
    """
    folder = _snapshot(repository, SMALL_FILES)
    if weights and not has_weights(folder):
        pinned = replace(repository, revision=folder.name)
        _snapshot(pinned, _weight_files(pinned, folder))
    return folder, folder.name


def has_weights(folder: Path) -> bool:
    """Whether ``folder`` has one complete set of weights: a single file, or an index with all its shards."""
    if any((folder / name).is_file() for name in WEIGHT_FILES):
        return True
    indexes = [folder / name for name in INDEX_FILES if (folder / name).is_file()]
    return any(all((folder / shard).is_file() for shard in read_index(index).values()) for index in indexes)


def _weight_files(repository: Repository, folder: Path) -> Sequence[str]:
    """Names of the weight files to download: safetensors before ``torch.save``, one file before shards."""
    from huggingface_hub import HfApi

    with _hub_errors(repository, "in the cache only without its weights"):
        listed = set(HfApi().list_repo_files(repository.name, revision=repository.revision))
    for name, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        if name in listed:
            return [name]
        if index in listed:
            _snapshot(repository, [index])
            return sorted(set(read_index(folder / index).values()))
    raise UserError(
        f"'{repository.name}' holds no weights for PyTorch; "
        f"expected one of {', '.join(WEIGHT_FILES + INDEX_FILES)}."
    )


def _snapshot(repository: Repository, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in files]
    with _hub_errors(repository, "not in the cache"):
        return Path(snapshot_download(repository.name, revision=repository.revision, allow_patterns=patterns))


@contextmanager
def _hub_errors(repository: Repository, cached: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line each; the most specific class first."""
    from huggingface_hub import errors

    name, hint = repository.name, repository.hint
    nowhere = f"{'' if repository.in_table else 'not in the table, '}not a folder, {cached}"
    help_text = f"{hint} {OFFLINE_HELP}".strip()
    unreachable = _unreachable_errors()
    try:
        yield
    except errors.GatedRepoError as error:
        advice = (
            "accept its terms on its hub page and log in with 'hf auth login', or pass a checkpoint folder."
        )
        raise UserError(f"'{name}' is gated: {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = hint or "Check the name, or pass a checkpoint folder."
        raise UserError(
            f"'{name}' is not on the hub, or is private and needs 'hf auth login'. {advice}"
        ) from error
    except errors.RevisionNotFoundError as error:
        advice = "Name a branch, tag or commit of its repository."
        raise UserError(f"'{name}' has no revision '{repository.revision}'. {advice}") from error
    except errors.HFValidationError as error:
        message = f"'{name}' is {nowhere}, and no hub id of the form 'organisation/name'. {help_text}"
        raise UserError(message) from error
    except unreachable as error:
        raise UserError(f"'{name}' is {nowhere}, and the hub is unreachable. {help_text}") from error


def _unreachable_errors() -> tuple[type[Exception], ...]:
    """What the hub client raises when a connection fails or the server answers with an error."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    http_library_error = HfHubHTTPError.__bases__[0]
    assert issubclass(http_library_error, Exception)
    return (LocalEntryNotFoundError, http_library_error, ConnectionError, TimeoutError)
