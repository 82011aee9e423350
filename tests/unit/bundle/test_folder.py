from __future__ import annotations

from pathlib import Path

import pytest

from support.manifests import write_manifest
from t5edge.bundle.folder import check_target_folder, keep_failed, writing
from t5edge.bundle.manifest import Manifest, is_bundle
from t5edge.errors import GateError, UserError


def make_bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    write_manifest(folder)
    return folder


def write_half(out: Path, force: bool) -> None:
    with writing(out, force) as folder:
        (folder / "new").write_text("new")
        raise RuntimeError("half-way")


def test_a_bundle_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with writing(out, force=False) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert (out / "a").read_text() == "a"
    with pytest.raises(RuntimeError, match="half-way"):
        write_half(tmp_path / "other", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_existing_bundle_needs_force(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    with pytest.raises(UserError, match="pass --force to replace this bundle"):
        check_target_folder(out, force=False)
    with writing(out, force=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    with pytest.raises(RuntimeError, match="half-way"):
        write_half(out, force=True)
    assert is_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="is not a t5edge bundle, so it is never replaced"):
            check_target_folder(tmp_path, force)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_bundle_is_kept_beside(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    failed = keep_failed(out)
    assert failed.name == "out.failed"
    assert is_bundle(failed)
    assert not out.exists()


def fail_its_gate(out: Path) -> None:
    with writing(out, force=True) as folder:
        (folder / "new").write_text("new")
        write_manifest(folder, variant="failed")
        raise GateError("it is wrong.")


def test_a_bundle_that_fails_its_gate_is_kept_beside_an_older_one(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(GateError, match=r"^it is wrong. The bundle is kept for study as '.*out.failed'.$"):
            fail_its_gate(out)
    assert Manifest.read(out).variant == "x"
    assert Manifest.read(tmp_path / "out.failed").variant == "failed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.failed"]


def test_a_failed_bundle_never_replaces_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed" / "thesis.txt").write_text("years of work")
    with pytest.raises(GateError, match=r"it is wrong. The bundle is not kept for study: .*not a t5edge bundle"):
        fail_its_gate(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.failed").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "out").exists()


def test_a_gate_that_fails_before_there_is_a_bundle_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"^too early$"), writing(tmp_path / "out", force=False):
        raise GateError("too early")
    assert list(tmp_path.iterdir()) == []
