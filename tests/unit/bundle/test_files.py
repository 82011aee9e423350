"""Files of a bundle: hashes, links, and JSON that is never half written nor written through a link."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from t5edge.bundle.files import FileFacts, describe_files, sha256_of, write_json


def test_files_are_described_by_size_hash_and_link(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "same").symlink_to(Path("..", "weights"))
    (tmp_path / "bundle.json").write_text("{}")
    (tmp_path / ".x.partial").write_text("half")
    digest = hashlib.sha256(b"12345").hexdigest()
    assert describe_files(tmp_path, {}) == {
        "below/same": FileFacts(5, digest, "weights"),
        "weights": FileFacts(5, digest),
    }
    assert describe_files(tmp_path, {"weights": "known"})["below/same"].sha256 == "known"


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_json_is_written_beside_and_renamed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": "\u00e9"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "\u00e9"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "\u00e9"}
    assert list(tmp_path.iterdir()) == [path]


def test_no_link_is_followed_for_writing(tmp_path: Path) -> None:
    """In a bundle from elsewhere, bundle.json and any .partial may be links to a file of the user's."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("bundle.json", "bundle.json.partial", ".bundle.json.partial"):
        (bundle / name).symlink_to(precious)
    write_json(bundle / "bundle.json", {"a": 1})
    assert precious.read_text() == "mine"
    assert not (bundle / "bundle.json").is_symlink()
    assert json.loads((bundle / "bundle.json").read_text()) == {"a": 1}
