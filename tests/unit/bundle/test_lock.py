from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from t5edge.bundle import lock
from t5edge.bundle.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from t5edge.bundle.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_and_nothing_left(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path) as held:
        assert held
        with pytest.raises(BlockingIOError, match="is locked"), locked(path):
            pass
    with locked(path):
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locked(path):
            pass
        holder.kill()
        holder.wait()
    with locked(path) as held:
        assert held


def test_a_lock_whose_file_has_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder removed it between our opening and our locking."""
    path, take = tmp_path / "lock", lock._lock

    def lose(descriptor: int) -> bool:
        path.unlink()
        path.write_text("another's")
        return take(descriptor)

    monkeypatch.setattr(lock, "_lock", lose)
    with pytest.raises(BlockingIOError), locked(path):
        pass
    assert path.read_text() == "another's"


def test_a_file_system_without_locks_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock") as held:
        assert not held
    assert list(tmp_path.iterdir()) == []
