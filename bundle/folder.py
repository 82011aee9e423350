"""The bundle folder: layout, manifest, hashes, and writing it so that a half-written one never stands at the target.

    bundle.json   encoder.onnx   decoder.onnx   weights.safetensors
    tokenizer.json   config.json   generation_config.json   parity.json   engines/<target>/<compute capability>/
    vocabulary.json  where only a part of the vocabulary was kept

While a bundle ``name`` is written, hidden names stand beside it: ``.name.lock``, ``.name.partial-*`` and, for the
moment in which ``--force`` replaces a bundle, ``.name.old-*``. The system releases the lock when its holder ends, so
whoever holds it knows that other partial folders are a killed export's.

This file needs the standard library only: the runtime and ``t5edge build`` import it on the device.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from t5edge.bundle.files import MANIFEST
from t5edge.bundle.lock import locked
from t5edge.bundle.manifest import Manifest, is_bundle
from t5edge.errors import GateError, UserError

FAILED_SUFFIX = ".failed"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing, which name no file."""
LEFTOVERS = (
    "*.partial",
    "engines/*/*/*.engine",
    "engines/*/*/*.engine.json",
    "*.DS_Store",
    "*desktop.ini",
    "*Thumbs.db",
)
"""What a killed ``t5edge build`` or a file manager leaves in a bundle without the manifest listing it."""


def check_target_folder(out: Path, force: bool) -> None:
    """Refuse a target that would lose something.

    Raises:
        UserError: ``out`` exists and ``force`` is off, or it is not a bundle of ours, or it holds a file besides the
            bundle's, or it cannot be a new folder.
    """
    try:
        problem = _problem(out, force)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        problem = f"'{out}' cannot be used ({getattr(error, 'strerror', error)}); choose another --out."
    if problem:
        raise UserError(problem)


def _problem(out: Path, force: bool) -> str | None:
    if out.is_symlink() and not out.exists():
        return f"'{out}' is a link to '{os.readlink(out)}', which does not exist; remove it, or choose another --out."
    if Path.cwd().is_relative_to(os.path.realpath(out)):
        return f"'{out}' is the folder you are in, or one around it; choose another --out."
    if not out.exists():
        return None
    if not out.is_dir():
        return f"'{out}' is a file; choose another --out."
    if not any(out.iterdir()):
        return None
    if not is_bundle(out):
        return f"'{out}' exists and is not a t5edge bundle, so it is never replaced; choose another --out."
    if not force:
        return f"'{out}' exists; pass --force to replace this bundle, or choose another --out."
    kept = _files_besides(out)
    if kept:
        names = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
        return f"'{out}' holds files besides the bundle's: {names}; move them, or choose another --out."
    return None


def _files_besides(folder: Path) -> list[str]:
    """Names of a user's own files in a bundle's folder: those that its manifest does not list."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = {path.relative_to(folder).as_posix() for path in files} - {MANIFEST, *Manifest.read(folder).files}
    return sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in LEFTOVERS))


@contextmanager
def writing(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes otherwise.

    Where ``out`` is a link to a folder, that folder is meant. Where the block ends with a ``GateError``, its folder
    becomes ``<out>.failed``, and where ``out`` came to hold something else meanwhile ``<out>.finished-*``; the error
    says so.

    Raises:
        UserError: as ``check_target_folder``; another export writes ``out``; or a file could not be read or written.
    """
    check_target_folder(out, force)
    out = Path(os.path.realpath(out)) if out.is_symlink() else out
    with ExitStack() as stack:
        folder = _begin(out, stack)
        check_target_folder(out, force)  # again: a bundle that a killed export had moved away may be back
        try:
            yield folder
        except GateError as error:
            if not is_bundle(folder):
                raise
            raise GateError(f"{error} {_kept_for_study(out, folder)}") from error
        except OSError as error:
            raise UserError(f"{_cause(error, out, folder)}; nothing was left behind.") from error
        _finish(folder, out, force)


def _begin(out: Path, stack: ExitStack) -> Path:
    """Lock ``out``, clear what killed exports left beside it, make the partial folder; ``stack`` undoes it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if stack.enter_context(locked(out.with_name(f".{out.name}.lock"))):
            _recover(out)
        folder = _beside(out, "partial")
        folder.mkdir()
    except BlockingIOError as error:
        raise UserError(f"another export is writing '{out}'; wait for it, or choose another --out.") from error
    except OSError as error:
        raise UserError(f"cannot write beside '{out}': {error.strerror}; choose another --out.") from error
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f".{out.name}.{what}-{secrets.token_hex(4)}")


def _recover(out: Path) -> None:
    """Clear what a killed export left beside ``out``; a bundle that it had moved away and not replaced comes back."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.(old|partial)-[\w-]+")
    for path, match in [(path, ours.fullmatch(path.name)) for path in out.parent.iterdir()]:
        if match and match[1] == "old" and not out.exists():
            path.rename(out)
        elif match:
            shutil.rmtree(path, ignore_errors=True)


def _cause(error: OSError, out: Path, folder: Path) -> str:
    """What failed: writing the bundle, or whatever else the system refused, such as reading the checkpoint."""
    name = os.fspath(error.filename) if isinstance(error.filename, str | Path) else ""
    if error.errno in NO_ROOM or name.startswith(os.fspath(folder)):
        return f"writing '{out}' failed: {error.strerror}"
    return f"'{name}': {error.strerror}" if name else f"the export stopped: {error}"


def _finish(folder: Path, out: Path, force: bool) -> None:
    """Let the finished folder be ``out``.

    Raises:
        UserError: ``out`` came to hold something that would be lost, or cannot be replaced; the bundle is kept beside.
    """
    try:
        check_target_folder(out, force)
        if is_bundle(out):
            _exchange(folder, out)
        else:
            with suppress(OSError):
                out.rmdir()  # an empty folder; a full one stays and is never renamed over
            folder.rename(out)
    except (UserError, OSError) as error:
        kept = out.with_name(f"{out.name}.finished{folder.name[folder.name.rindex('-') :]}")
        folder.rename(kept)
        raise UserError(f"the finished bundle is kept as '{kept}': {error}") from error


def _exchange(folder: Path, out: Path) -> None:
    old = _beside(out, "old")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def keep_failed(out: Path, written: Path | None = None) -> Path:
    """Move a bundle that failed its gate to ``<out>.failed`` for study, replacing an older failed one of ours.

    ``written``: where the bundle stands; None for ``out`` itself.
    """
    failed = out.with_name(out.name + FAILED_SUFFIX)
    check_target_folder(failed, force=True)
    if failed.exists():
        shutil.rmtree(failed)
    (written or out).rename(failed)
    return failed


def _kept_for_study(out: Path, folder: Path) -> str:
    """Keep what failed; says where, or why not."""
    try:
        return f"The bundle is kept for study as '{keep_failed(out, folder)}'."
    except (UserError, OSError) as error:
        return f"The bundle is not kept for study: {error}"
