"""Stores, with an export that only writes files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from support.manifests import write_manifest
from t5edge import pipeline
from t5edge.bundle.folder import writing
from t5edge.bundle.manifest import Manifest, is_bundle
from t5edge.errors import GateError, UserError
from t5edge.options import ExportOptions
from t5edge.tools.sweep import store as stores
from t5edge.tools.sweep.store import Store, is_url

OPTIONS = ExportOptions(variant="a")


def write_bundle(options: ExportOptions, fail: bool = False) -> SimpleNamespace:
    out = Path(str(options.out))
    with writing(out, options.force) as folder:
        (folder / "weights.safetensors").write_bytes(b"1234")
        (folder / "engines").mkdir()
        (folder / "engines" / "encoder.engine").write_bytes(b"12")
        write_manifest(folder)
    if fail:
        out.rename(out.with_name(out.name + ".failed"))
        raise GateError("parity failed")
    return SimpleNamespace(manifest=Manifest.read(out))


@pytest.fixture(params=["folder", "url"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Path]:
    """A store and the folder it writes to."""
    monkeypatch.setattr(pipeline, "export_bundle", write_bundle)
    return Store(str(tmp_path) if request.param == "folder" else f"file://{tmp_path}"), tmp_path


def test_a_bundle_is_made_and_found_again(place: tuple[Store, Path]) -> None:
    store, folder = place
    assert store.manifest("a-fp32") is None
    made = store.export("a-fp32", OPTIONS)
    assert is_bundle(folder / "a-fp32")
    assert store.place("a-fp32").endswith(f"{folder}/a-fp32")
    found = store.manifest("a-fp32")
    assert found == made
    assert set(made.files) == {"weights.safetensors", "engines/encoder.engine"}
    assert store.complete("a-fp32", made)
    (folder / "a-fp32" / "weights.safetensors").write_bytes(b"123")
    assert not store.complete("a-fp32", made)
    store.export("a-fp32", OPTIONS)  # a damaged one is replaced
    assert store.complete("a-fp32", made)
    (folder / "a-fp32" / "weights.safetensors").write_bytes(b"1235")
    assert not store.complete("a-fp32", made), "a flipped bit at the same size"
    store.export("a-fp32", OPTIONS)
    assert store.complete("a-fp32", made)
    (folder / "a-fp32" / "engines" / "encoder.engine").unlink()
    assert not store.complete("a-fp32", made)


def test_large_files_at_a_url_are_compared_by_size_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_bundle", write_bundle)
    monkeypatch.setattr(stores, "HASHED_BYTES", 3)
    store = Store(f"file://{tmp_path}")
    made = store.export("a-fp32", OPTIONS)
    (tmp_path / "a-fp32" / "weights.safetensors").write_bytes(b"1235")
    assert store.complete("a-fp32", made)
    (tmp_path / "a-fp32" / "engines" / "encoder.engine").write_bytes(b"13")
    assert not store.complete("a-fp32", made)


def test_a_foreign_folder_is_no_bundle(place: tuple[Store, Path]) -> None:
    store, folder = place
    (folder / "a-fp32").mkdir()
    (folder / "a-fp32" / "bundle.json").write_text("[]")
    assert store.manifest("a-fp32") is None


def test_a_failed_bundle_is_kept_for_study(place: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = place
    monkeypatch.setattr(pipeline, "export_bundle", lambda options: write_bundle(options, fail=True))
    with pytest.raises(GateError):
        store.export("a-fp32", OPTIONS)
    assert store.manifest("a-fp32") is None
    assert is_bundle(folder / "a-fp32.failed")


def test_an_upload_that_breaks_off_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "export_bundle", write_bundle)
    store = Store(f"file://{tmp_path}")
    store.export("a-fp32", OPTIONS)
    put = store._files.put_file

    def put_one(local: str, remote: str) -> None:
        if local.endswith("weights.safetensors"):
            raise ConnectionError("gone")
        put(local, remote)

    monkeypatch.setattr(store._files, "put_file", put_one)
    with pytest.raises(ConnectionError):
        store.export("a-fp32", OPTIONS)
    assert store.manifest("a-fp32") is None


def test_urls_are_told_from_folders() -> None:
    assert is_url("s3://bucket/bundles")
    assert not is_url("build/bundles")


def test_an_unknown_protocol_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"'nowhere://x' cannot be opened .* install fsspec and that protocol's driver"):
        Store("nowhere://x")
