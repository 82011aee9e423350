"""Where a sweep's bundles go: a folder that all processes see, or a URL; both are read through fsspec."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from t5edge.bundle.files import MANIFEST, FileFacts, sha256_of
from t5edge.bundle.folder import FAILED_SUFFIX
from t5edge.bundle.manifest import Manifest
from t5edge.errors import GateError, UserError
from t5edge.options import ExportOptions

HASHED_BYTES = 4 * 2**20
"""Of files at a URL, those up to this size are read again to compare their hash; of larger ones the size counts."""


def is_url(out: str) -> bool:
    return "://" in out


class Store:
    """A place for bundles. In a folder a bundle appears whole, by a rename.

    At a URL it is uploaded from a temporary folder; its manifest goes last, so a part of one never counts.
    """

    def __init__(self, out: str) -> None:
        """``out``: as ``--out`` names it.

        Raises:
            UserError: fsspec or the driver of the URL's protocol is missing, or the protocol is unknown.
        """
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(out)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"'{out}' cannot be opened ({error}); install fsspec and that protocol's driver."
            ) from error
        self._out, self._url = out.rstrip("/"), is_url(out)

    def place(self, name: str) -> str:
        """The bundle's folder or URL."""
        return f"{self._out}/{name}" if self._url else str(Path(self._out) / name)

    def _path(self, name: str, file: str) -> str:
        return f"{self._root.rstrip('/')}/{name}/{file}"

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a bundle that is there; None when there is none."""
        try:
            return Manifest.from_dict(json.loads(self._files.cat_file(self._path(name, MANIFEST))))
        except (OSError, ValueError, RecursionError, UserError):
            return None

    def complete(self, name: str, manifest: Manifest) -> bool:
        """Whether every file has the size and sha256 of the manifest; see ``HASHED_BYTES`` for URLs."""
        try:
            return all(self._sound(self._path(name, file), facts) for file, facts in manifest.files.items())
        except FileNotFoundError:
            return False

    def _sound(self, path: str, facts: FileFacts) -> bool:
        if self._files.size(path) != facts.bytes:
            return False
        if not self._url:
            return sha256_of(Path(path)) == facts.sha256
        large = facts.bytes > HASHED_BYTES
        return large or hashlib.sha256(self._files.cat_file(path)).hexdigest() == facts.sha256

    def export(self, name: str, options: ExportOptions) -> Manifest:
        """Make the bundle; returns its manifest. Raises as ``export_bundle``."""
        from t5edge.pipeline import export_bundle

        if not self._url:
            known = self.manifest(name) is not None  # a damaged bundle of ours may be replaced without --force
            return export_bundle(replace(options, out=self.place(name), force=options.force or known)).manifest
        with tempfile.TemporaryDirectory(prefix="t5edge-sweep-") as folder:
            local = Path(folder) / name
            try:
                manifest = export_bundle(replace(options, out=str(local), force=False)).manifest
            except GateError:
                self._upload(local.with_name(name + FAILED_SUFFIX), name + FAILED_SUFFIX)
                raise
            self._upload(local, name)
        return manifest

    def _upload(self, local: Path, name: str) -> None:
        """All files of a bundle, the manifest last; an older one of the name loses its manifest first."""
        if not local.is_dir():
            return
        marker = self._path(name, MANIFEST)
        if self._files.exists(marker):
            self._files.rm_file(marker)
        files = [path for path in sorted(local.rglob("*")) if path.is_file() and path.name != MANIFEST]
        for path in [*files, local / MANIFEST]:
            remote = self._path(name, path.relative_to(local).as_posix())
            self._files.makedirs(remote.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path), remote)
