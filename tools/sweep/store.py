"""Where a sweep's bundles go: a folder that all workers see, or a URL that fsspec can write to."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from t5edge.bundle.files import MANIFEST
from t5edge.bundle.folder import FAILED_SUFFIX
from t5edge.bundle.manifest import Manifest, is_bundle
from t5edge.errors import GateError, UserError
from t5edge.options import ExportOptions


class Store(Protocol):
    """A place for bundles."""

    def place(self, name: str) -> str:
        """The bundle's folder or URL."""
        ...

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a bundle that is there; None when there is none."""
        ...

    def complete(self, name: str, manifest: Manifest) -> bool:
        """Whether every file of the manifest is there at its size."""
        ...

    def export(self, name: str, options: ExportOptions) -> Manifest:
        """Make the bundle; returns its manifest. Raises as ``export_bundle``."""
        ...


def is_url(out: str) -> bool:
    return "://" in out


def open_store(out: str) -> Store:
    """The place that ``--out`` names.

    Raises:
        UserError: fsspec or the driver of the URL's protocol is missing, or the protocol is unknown.
    """
    return UrlStore(out) if is_url(out) else FolderStore(Path(out))


class FolderStore:
    """A folder. Bundles appear in it whole, by a rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> str:
        return str(self.folder / name)

    def manifest(self, name: str) -> Manifest | None:
        try:
            return Manifest.read(self.folder / name)
        except UserError:
            return None

    def complete(self, name: str, manifest: Manifest) -> bool:
        files = {self.folder / name / file: facts.bytes for file, facts in manifest.files.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in files.items())

    def export(self, name: str, options: ExportOptions) -> Manifest:
        from t5edge.pipeline import export_bundle

        known = is_bundle(self.folder / name)  # a damaged bundle of ours may be replaced without --force
        made = export_bundle(replace(options, out=self.place(name), force=options.force or known))
        return made.manifest


class UrlStore:
    """A URL. A bundle is made in a temporary folder and uploaded; its manifest goes last, so a part never counts."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"'{url}' cannot be opened ({error}); install fsspec and that protocol's driver."
            ) from error
        self._url = url.rstrip("/")

    def place(self, name: str) -> str:
        return f"{self._url}/{name}"

    def _path(self, name: str, file: str) -> str:
        return f"{self._root.rstrip('/')}/{name}/{file}"

    def manifest(self, name: str) -> Manifest | None:
        try:
            return Manifest.from_dict(json.loads(self._files.cat_file(self._path(name, MANIFEST))))
        except (FileNotFoundError, ValueError, RecursionError, UserError):
            return None

    def complete(self, name: str, manifest: Manifest) -> bool:
        try:
            sizes = {file: self._files.size(self._path(name, file)) for file in manifest.files}
        except FileNotFoundError:
            return False
        return all(size == manifest.files[file].bytes for file, size in sizes.items())

    def export(self, name: str, options: ExportOptions) -> Manifest:
        from t5edge.pipeline import export_bundle

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
