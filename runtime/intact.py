"""Refuse a bundle whose files are not those that were proven, before one token is made of them."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

from t5edge.bundle.files import sha256_of
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.user_cache import cache_folder

READ_BESIDE_GRAPHS = ("weights.safetensors", "tokenizer.json", "generation_config.json")
REMEMBERED_BYTES = 16 << 20
"""Files from this size on are hashed once; smaller ones take a few milliseconds each time."""
SETTLED_SECONDS = 2.0
"""A file changed this recently is not remembered: the next change could carry the same time stamp."""


def check_intact(folder: Path, manifest: Manifest) -> None:
    """Compare what the runtime reads with the manifest's sha256: graphs, weights, tokenizer, generation settings.

    A large file is hashed when it is first met; a mark in the user's cache keeps that, under its path, device, inode,
    size and both time stamps. Engines are compared where they are opened.

    A file that is not there is left to whatever opens it: a device with engines needs no graphs for the CPU.

    Raises:
        UserError: naming the files that are unreadable or changed.
    """
    read = [name for name in manifest.hashes if _is_read(name) and (folder / name).exists()]
    changed = [name for name in read if not _is_intact(folder / name, manifest.hashes[name])]
    changed += [path.name for path in folder.iterdir() if path.name not in changed and _is_endless(path)]
    if changed:
        raise UserError(
            f"'{folder}' is not what was exported: {', '.join(changed)} changed or cannot be read; "
            "copy the bundle anew or export it again (t5edge.load(..., check=False) opens it as it is)."
        )


def _is_read(name: str) -> bool:
    path = PurePosixPath(name)
    return len(path.parts) == 1 and (path.suffix == ".onnx" or name in READ_BESIDE_GRAPHS)


def _is_endless(path: Path) -> bool:
    """A named pipe or a device: whatever opens it may wait for ever."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _is_intact(path: Path, digest: str) -> bool:
    try:
        if path.stat().st_size < REMEMBERED_BYTES:
            return sha256_of(path) == digest
        mark = _mark(path, digest)
        if mark.exists():
            return True
        began = time.time()
        intact = sha256_of(path) == digest and mark == _mark(path, digest)
        if intact and began - path.stat().st_ctime > SETTLED_SECONDS:
            _remember(mark)
        return intact
    except OSError:
        return False


def _mark(path: Path, digest: str) -> Path:
    """The mark that says: this very file, unchanged since, has this sha256."""
    stat = path.stat()
    facts = (path.resolve(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, digest)
    return cache_folder() / "intact" / hashlib.sha256(repr(facts).encode()).hexdigest()


def _remember(mark: Path) -> None:
    with suppress(OSError):  # a home that cannot be written costs time, nothing else
        mark.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(mark, os.O_CREAT | os.O_WRONLY, 0o600))
