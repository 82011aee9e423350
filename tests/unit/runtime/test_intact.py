"""A bundle whose files changed after the export is refused before one token is made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from t5edge import cli
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime import intact
from t5edge.runtime.intact import check_intact
from t5edge.runtime.model import load
from t5edge.runtime.user_cache import cache_folder

HOME = Path(__file__).parents[2] / "bundles-0.1"
READ = ("encoder.onnx", "decoder.onnx", "decoder_buffered.onnx", "weights.safetensors", "generation_config.json")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HOME / "byt5-int8", tmp_path / "bundle"))


def flip(path: Path, place: int = -9) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def unreadable(path: Path) -> None:
    """A folder in its place: the rights of a file do not stop root."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [*READ, "tokenizer.json"])
@pytest.mark.parametrize("damage", [flip, cut, unreadable])
def test_what_the_runtime_reads_is_compared(bundle: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(bundle / name)
    with pytest.raises(UserError, match=rf"is not what was exported: {name} changed or cannot be read"):
        load(bundle)


def test_every_changed_file_is_named(bundle: Path) -> None:
    for name in READ:
        flip(bundle / name)
    with pytest.raises(UserError, match=", ".join(sorted(READ))):
        load(bundle)


def test_what_it_does_not_read_may_change(bundle: Path) -> None:
    (bundle / "parity.json").write_text("{}")
    (bundle / "tokenizer.json").unlink()
    (bundle / "config.json").write_text("{}")
    (bundle / "notes.txt").write_text("mine")
    load(bundle)


def test_a_changed_bundle_opens_where_that_is_asked_for(bundle: Path) -> None:
    flip(bundle / "weights.safetensors")
    load(bundle, check=False)


def test_generate_and_bench_refuse_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(bundle / "weights.safetensors")
    for command in (["generate", str(bundle), "a"], ["bench", str(bundle)]):
        assert cli.main(command) == 2
        assert "is not what was exported: weights.safetensors" in capsys.readouterr().err


def marks() -> list[Path]:
    return list((cache_folder() / "intact").glob("*"))


@pytest.fixture
def large(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose weights count as large, and as written long ago."""
    monkeypatch.setattr(intact, "REMEMBERED_BYTES", (bundle / "weights.safetensors").stat().st_size)
    monkeypatch.setattr(intact, "SETTLED_SECONDS", -1.0)
    return bundle


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    hashed: list[str] = []
    original = intact.sha256_of

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(intact, "sha256_of", counted)
    return hashed


def test_large_files_are_hashed_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, manifest = count_hashing(monkeypatch), Manifest.read(large)
    for _ in range(3):
        check_intact(large, manifest)
    assert hashed.count("weights.safetensors") == 1
    assert hashed.count("encoder.onnx") == 3
    assert len(marks()) == 1


def test_a_large_file_changed_since_is_hashed_again(large: Path) -> None:
    manifest, path = Manifest.read(large), large / "weights.safetensors"
    check_intact(large, manifest)
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync -t or a careless tool leaves it
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        check_intact(large, manifest)
    flip(path)
    check_intact(large, manifest)


def test_a_file_written_a_moment_ago_is_not_remembered(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intact, "SETTLED_SECONDS", 3600.0)
    os.utime(large / "weights.safetensors", (time.time() - 7200,) * 2)
    check_intact(large, Manifest.read(large))
    assert marks() == []


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check_intact(large, Manifest.read(large))
    assert marks() == []
