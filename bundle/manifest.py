"""The manifest of a bundle, ``bundle.json``: read, write, hashes of the other files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5edge.errors import UserError

FORMAT = "t5edge-bundle"


FORMAT_VERSION = 1


MANIFEST = "bundle.json"


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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
