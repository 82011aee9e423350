"""The bundle folder: layout, manifest, hashes, and writing it so that a half-written one never stands at the target.

    bundle.json   encoder.onnx   decoder.onnx   weights.safetensors
    tokenizer.json   config.json   generation_config.json   parity.json   engines/<target>/<compute capability>/

This file needs the standard library only: the runtime and ``t5edge build`` import it on the device.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t5edge.bundle.manifest import is_bundle
from t5edge.errors import GateError, UserError

FAILED_SUFFIX = ".failed"


def check_target_folder(out: Path, force: bool) -> None:
    """Refuse a target that would lose something.

    Raises:
        UserError: ``out`` exists and ``force`` is off, or ``out`` is not a bundle of ours.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"'{out}' is a file; choose another --out.")
    if not any(out.iterdir()):
        return
    if not is_bundle(out):
        raise UserError(f"'{out}' exists and is not a t5edge bundle, so it is never replaced; choose another --out.")
    if not force:
        raise UserError(f"'{out}' exists; pass --force to replace this bundle, or choose another --out.")


@contextmanager
def writing(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes otherwise.

    Where the block ends with a ``GateError``, it becomes ``<out>.failed``, and the error says so.
    """
    check_target_folder(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-{os.getpid()}-", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot write beside '{out}': {error.strerror}; choose another --out.") from error
    folder.chmod(0o755)
    try:
        yield folder
        _replace(out, folder)
    except GateError as error:
        if not is_bundle(folder):
            raise
        raise GateError(f"{error} {_kept_for_study(out, folder)}") from error
    except OSError as error:
        raise UserError(f"writing '{out}' failed: {error.strerror or error}; nothing was left behind.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(out: Path, folder: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _remove_stale(out: Path) -> None:
    """Clear what a killed export left beside ``out``: partial folders whose process is gone."""
    for path in out.parent.glob(f".{out.name}.partial-*"):
        process = path.name.rpartition("partial-")[2].partition("-")[0]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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
