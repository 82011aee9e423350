"""What may go wrong while a bundle is written, and what must not be lost then."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.manifests import write_manifest
from t5edge.bundle.folder import writing
from t5edge.bundle.manifest import Manifest
from t5edge.errors import GateError, UserError

WRITER = """
import sys
from pathlib import Path
from t5edge.bundle.folder import writing
sys.path.append(sys.argv[-1])
from support.manifests import write_manifest
out = Path(sys.argv[1])
with writing(out, force="--force" in sys.argv) as folder:
    (folder / "weights.safetensors").write_bytes(b"new")
    write_manifest(folder, variant="new")
    print(folder, flush=True)
    sys.stdin.readline()
    if "--die" in sys.argv:  # between the two renames of --force
        Path.rename_ = Path.rename
        Path.rename = lambda self, to: self.rename_(to) and print("moved", flush=True) or sys.stdin.readline()
"""


def fill(folder: Path, variant: str) -> None:
    (folder / "weights.safetensors").write_bytes(b"weights")
    write_manifest(folder, variant=variant)


def make_bundle(folder: Path, variant: str = "old") -> Path:
    folder.mkdir(parents=True)
    fill(folder, variant)
    return folder


def write(
    out: Path, force: bool = False, variant: str = "new", meanwhile: Callable[[Path], object] = lambda folder: None
) -> None:
    with writing(out, force) as folder:
        fill(folder, variant)
        meanwhile(folder)


def fail(error: BaseException) -> None:
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def put_note(folder: Path) -> None:
    """A user's own file."""
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("years of work")


class Export:
    """Another process that writes ``out`` until it is told to finish."""

    def __init__(self, out: Path, *flags: str) -> None:
        command = [sys.executable, "-c", WRITER, os.fspath(out), *flags, os.fspath(Path(__file__).parents[2])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder = Path(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_live_exports_folder_is_left_alone_and_a_killed_ones_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = Export(out)
    with pytest.raises(UserError, match=r"another export is writing '.*out'; wait for it, or choose another --out"):
        write(out)
    assert other.folder.is_dir()
    other.kill()
    assert other.folder.is_dir()
    write(out)
    assert names(tmp_path) == ["out"]


def test_of_two_exports_into_one_folder_one_wins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = Export(out)
    with pytest.raises(UserError, match="another export is writing"):
        write(out, force=True)
    other.finish()
    assert other.process.wait() == 0
    assert names(tmp_path) == ["out"]
    with pytest.raises(UserError, match="exists; pass --force"):
        write(out)


def test_without_locks_nothing_is_cleared_and_still_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5edge.bundle.lock._lock", lambda descriptor: False)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"kept as '(.*out.finished-\w+)': .*exists"):
        write(out, variant="first", meanwhile=lambda folder: write(out, variant="second"))
    assert Manifest.read(out).variant == "second"
    (kept,) = tmp_path.glob("out.finished-*")
    assert Manifest.read(kept).variant == "first"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_appears_meanwhile_is_never_deleted(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as raised:
        write(out, force, meanwhile=lambda folder: put_note(out))
    (kept,) = tmp_path.glob("out.finished-*")
    assert f"the finished bundle is kept as '{kept}'" in str(raised.value)
    assert Manifest.read(kept).variant == "new"
    assert (out / "notes" / "mine.txt").read_text() == "years of work"
    assert names(tmp_path) == ["out", kept.name]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert Manifest.read(tmp_path / "out").variant == "new"


def test_a_users_own_file_in_a_bundle_is_never_deleted(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    engines = out / "engines" / "tensorrt" / "8.6"
    engines.mkdir(parents=True)
    for left in (out / ".DS_Store", engines / "encoder.engine", engines / "decoder.engine.partial"):
        left.write_text("nobody's")
    with pytest.raises(UserError, match=r"kept as .*finished.* besides the bundle's: notes/mine\.txt; move them"):
        write(out, force=True, meanwhile=lambda folder: put_note(out))
    with pytest.raises(UserError, match=r"besides the bundle's: notes/mine\.txt; move them"):
        write(out, force=True)
    assert Manifest.read(out).variant == "old"
    (out / "notes" / "mine.txt").unlink()
    write(out, force=True)
    assert names(out) == ["bundle.json", "weights.safetensors"]


def test_a_failed_bundle_with_a_users_file_stays(tmp_path: Path) -> None:
    failed = make_bundle(tmp_path / "out.failed")
    put_note(failed)
    with pytest.raises(GateError, match=r"it is wrong\. The bundle is not kept for study: .*notes/mine\.txt"):
        write(tmp_path / "out", meanwhile=lambda folder: fail(GateError("it is wrong.")))
    assert Manifest.read(failed).variant == "old"


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    stored, out = make_bundle(tmp_path / "disk" / "stored"), tmp_path / "out"
    out.symlink_to(stored)
    write(out, force=True)
    assert out.is_symlink()
    assert Manifest.read(stored).variant == "new"
    assert names(tmp_path / "disk") == ["stored"]
    assert names(tmp_path) == ["disk", "out"]


def test_a_killed_replacement_leaves_the_old_bundle_for_the_next_start(tmp_path: Path) -> None:
    out = make_bundle(tmp_path / "out")
    other = Export(out, "--force", "--die")
    other.finish()
    assert other.answer() == "moved"
    assert not out.exists()
    other.kill()
    with pytest.raises(UserError, match="exists; pass --force"):
        write(out)
    assert Manifest.read(out).variant == "old"
    assert names(tmp_path) == ["out"]
    write(out, force=True)
    assert Manifest.read(out).variant == "new"


def test_an_old_bundle_whose_replacement_is_in_place_is_cleared(tmp_path: Path) -> None:
    make_bundle(tmp_path / ".out.old-0123", "older")
    out = make_bundle(tmp_path / "out")
    write(out, force=True)
    assert Manifest.read(out).variant == "new"
    assert names(tmp_path) == ["out"]


def test_a_replacement_that_fails_half_way_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = make_bundle(tmp_path / "out"), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and target == out:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"kept as '.*out\.finished-\w+': .*Permission denied"):
        write(out, force=True)
    assert Manifest.read(out).variant == "old"
    (kept,) = tmp_path.glob("out.finished-*")
    assert Manifest.read(kept).variant == "new"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_whatever_ends_the_export_the_partial_folder_goes(tmp_path: Path, raised: type[BaseException]) -> None:
    with pytest.raises(raised):
        write(tmp_path / "out", meanwhile=lambda folder: fail(raised()))
    assert names(tmp_path) == []


def read_missing(folder: Path) -> None:
    (folder.parent / "model.safetensors").read_bytes()


def write_below_nothing(folder: Path) -> None:
    (folder / "nothing" / "encoder.onnx").write_bytes(b"")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (read_missing, r"^'.*/model\.safetensors': No such file or directory; nothing was left behind\.$"),
        (write_below_nothing, r"^writing '.*out' failed: No such file or directory; nothing was left behind\.$"),
        (
            lambda folder: fail(OSError(errno.ENOSPC, "No space left on device")),
            r"^writing '.*out' failed: No space left on device; nothing was left behind\.$",
        ),
        (
            lambda folder: fail(ConnectionError("the hub went away")),
            r"^the export stopped: the hub went away; nothing was left behind\.$",
        ),
    ],
)
def test_an_error_of_the_system_says_what_failed(tmp_path: Path, act: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out", meanwhile=act)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", r"^'\.' is the folder you are in, or one around it; choose another --out\.$"),
        ("..", "is the folder you are in, or one around it"),
        ("here/..", "is the folder you are in, or one around it"),
        ("x" * 300, r"^'x+' cannot be used \(File name too long\); choose another --out\.$"),
        ("x" * 250, r"^cannot write beside 'x+': File name too long; choose another --out\.$"),
        (
            "dangling",
            r"^'dangling' is a link to 'nowhere', which does not exist; remove it, or choose",
        ),
        ("file", "'file' is a file"),
        ("file/below", "cannot write beside 'file/below': "),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_a_new_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, message: str, force: bool
) -> None:
    monkeypatch.chdir(make_bundle(tmp_path / "cwd"))
    Path("here").mkdir()
    Path("dangling").symlink_to("nowhere")
    Path("file").touch()
    before = names(Path())
    with pytest.raises(UserError, match=message):
        write(Path(out), force)
    assert names(Path()) == before
    assert names(tmp_path) == ["cwd"]


def test_names_with_wildcards_are_names(tmp_path: Path) -> None:
    (tmp_path / ".a.partial-0123").mkdir()
    (tmp_path / ".[a].partial-0123").mkdir()
    (tmp_path / ".[a].old-1.partial-0123").mkdir()  # of a bundle "[a].old-1"
    write(tmp_path / "[a]")
    assert names(tmp_path) == [".[a].old-1.partial-0123", ".a.partial-0123", "[a]"]


def test_the_folder_gets_the_mode_that_the_user_gives_folders(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode
