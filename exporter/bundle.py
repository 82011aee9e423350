"""The bundle folder: layout, manifest, hashes, and writing it so that a half-written one never stands at the target.

    bundle.json   encoder.onnx   decoder.onnx   weights.safetensors
    tokenizer.json   config.json   generation_config.json   parity.json   engines/<target>/<compute capability>/

This file needs the standard library only: the runtime and ``t5edge build`` import it on the device.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporter.errors import GateError, UserError

FORMAT = "t5edge-bundle"
FORMAT_VERSION = 1
MANIFEST = "bundle.json"
FAILED_SUFFIX = ".failed"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        UserError: the folder is not a bundle, or of a newer format.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder; pass a bundle written by 't5edge export'.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"'{folder}' has no {MANIFEST}; pass a bundle written by 't5edge export'.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); export the bundle again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a t5edge manifest; pass a bundle written by 't5edge export'.")
    if manifest.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(
            f"'{folder}' has format version {manifest['format_version']}, this t5edge reads up to {FORMAT_VERSION}; "
            "upgrade t5edge."
        )
    return manifest


def is_bundle(folder: Path) -> bool:
    """Whether the folder is recognisably a bundle of ours."""
    try:
        read_manifest(folder)
    except UserError:
        return False
    return True


def sha256_of(path: Path) -> str:
    """Hash of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON beside the file and rename, so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_manifest(folder: Path, manifest: dict[str, Any], known_hashes: dict[str, str] | None = None) -> None:
    """Write the manifest with the size and sha256 of every other file of the bundle, and whether it is a ``link``."""
    known = known_hashes or {}
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST and not name.endswith(".partial"):
            stored = _stored_as(path, folder)
            files[name] = {"bytes": path.stat().st_size, "sha256": known.get(stored) or sha256_of(path)}
            if stored != name:
                files[name]["link"] = stored
    write_json(
        folder / MANIFEST,
        {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest, "files": files},
    )


def _stored_as(path: Path, folder: Path) -> str:
    """The name of the file of the bundle that ``path`` is, or links to."""
    resolved, root = path.resolve(), folder.resolve()
    inside = path.is_symlink() and resolved.is_relative_to(root)
    return (resolved.relative_to(root) if inside else path.relative_to(folder)).as_posix()


def stored_bytes(manifest: Mapping[str, Any]) -> int:
    """Bytes of the bundle's files; a link to another of them counts nothing."""
    return sum(facts["bytes"] for facts in manifest["files"].values() if "link" not in facts)


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or whose sha256 is not the manifest's."""
    files = read_manifest(folder)["files"]
    return [
        name
        for name, facts in files.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != facts["sha256"]
    ]


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
