from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from t5edge.bundle.manifest import FORMAT, damaged_files, read_manifest, stored_bytes, write_manifest
from t5edge.errors import UserError


def test_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    write_manifest(tmp_path, {"variant": "x"})
    files = read_manifest(tmp_path)["files"]
    facts = files["weights.safetensors"]
    assert facts == {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert damaged_files(tmp_path) == []
    (tmp_path / "weights.safetensors").write_bytes(b"weightz")
    assert damaged_files(tmp_path) == ["weights.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no bundle.json"),
        ("{", "cannot be read"),
        ("[]", "is not a t5edge manifest"),
        ('{"format": "other"}', "is not a t5edge manifest"),
        (json.dumps({"format": FORMAT, "format_version": 99}), "upgrade t5edge"),
    ],
)
def test_a_foreign_folder_is_refused_in_plain_words(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_link_is_named_and_stored_once(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "same").symlink_to(Path("..", "weights"))
    write_manifest(tmp_path, {})
    files = read_manifest(tmp_path)["files"]
    assert files["below/same"] == {**files["weights"], "link": "weights"}
    assert stored_bytes(read_manifest(tmp_path)) == 5


def test_a_known_hash_is_taken_and_a_missing_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    write_manifest(tmp_path, {}, {"weights": "0" * 64})
    assert read_manifest(tmp_path)["files"]["weights"]["sha256"] == "0" * 64
    assert damaged_files(tmp_path) == ["weights"]
    write_manifest(tmp_path, {})
    (tmp_path / "weights").unlink()
    assert damaged_files(tmp_path) == ["weights"]
