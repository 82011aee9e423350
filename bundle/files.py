"""The files of a bundle: sizes, hashes, links among them, and JSON that is never half written."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5edge.bundle.schema import Count, FileName

MANIFEST = "bundle.json"
VOCABULARY = "vocabulary.json"
"""Where a part of the vocabulary was kept: ``kept[new id]`` is the old one."""


@dataclass(frozen=True)
class FileFacts:
    """One file: its size, its sha256 in hex, and the file of the bundle that it is a ``link`` to, if any."""

    bytes: Count
    sha256: str
    link: FileName | None = None

    def to_dict(self) -> dict[str, Any]:
        facts = {"bytes": self.bytes, "sha256": self.sha256}
        return facts if self.link is None else {**facts, "link": self.link}


def describe_files(folder: Path, known_hashes: Mapping[str, str]) -> dict[str, FileFacts]:
    """Every file of a bundle but its manifest, by name; hashes that are known are taken as given."""
    found = {}
    for path in _files_below(folder):
        name, stored = path.relative_to(folder).as_posix(), _stored_as(path, folder)
        digest = known_hashes.get(stored) or sha256_of(path)
        found[name] = FileFacts(path.stat().st_size, digest, None if stored == name else stored)
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST and path.suffix != ".partial":
            yield path


def _stored_as(path: Path, folder: Path) -> str:
    """The name of the file of the bundle that ``path`` is, or links to."""
    resolved, root = path.resolve(), folder.resolve()
    inside = path.is_symlink() and resolved.is_relative_to(root)
    return (resolved.relative_to(root) if inside else path.relative_to(folder)).as_posix()


def regular(path: Path) -> Path:
    """``path`` itself, if there is nothing of another kind: a named pipe would be waited for, a device has no end.

    Raises:
        OSError: it is a folder, a named pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.ENXIO, "it is not a regular file", str(path))
    return path


def sha256_of(path: Path) -> str:
    """Hash of a file, hex; raises OSError as ``regular``."""
    digest = hashlib.sha256()
    with regular(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON; see ``write_bytes``."""
    write_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside the file and rename, so that a reader never sees half of it.

    The file beside it is new and has a name of its own: in a bundle from elsewhere, no link is followed for writing.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
