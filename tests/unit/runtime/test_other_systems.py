"""Windows and macOS, as far as Linux can play them: what they do not have is taken away, then a bundle is used.

It shows which names the package asks for, not how the other system behaves.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest
from rich.console import Console

from support.manifests import write_manifest
from t5edge.bundle.folder import writing
from t5edge.bundle.manifest import is_bundle
from t5edge.commands import doctor, inspect
from t5edge.errors import UserError
from t5edge.progress import Silent
from t5edge.runtime.model import load
from t5edge.tools.bench.bench import peak_mib
from t5edge.tools.planning.devices import available_cores

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
BUNDLES = sorted(path for path in (ROOT / "tests" / "bundles-0.1").iterdir() if path.is_dir())
ABSENT: dict[str, dict[types.ModuleType | type, tuple[str, ...]]] = {
    "win32": {
        os: ("fork", "getuid", "kill", "sched_getaffinity", "sysconf", "uname"),
        signal: ("SIGHUP", "SIGKILL"),
    },
    "darwin": {os: ("sched_getaffinity",), psutil.Process: ("cpu_affinity",)},
}
MODULES = {"win32": ("fcntl", "grp", "pwd", "resource"), "darwin": ()}


class FileLocks(types.ModuleType):
    """``msvcrt`` by this system's own locks: a region of a file that is locked already is refused."""

    LK_NBLCK = 2

    def __init__(self, own: Any) -> None:
        super().__init__("msvcrt")
        self.own = own

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        try:
            self.own.flock(descriptor, self.own.LOCK_EX | self.own.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error


class Library(ctypes.CDLL):
    """A library by its file's name; the C library has another name there."""

    def __init__(self, name: str | None, *arguments: Any) -> None:
        if name is None and sys.platform == "win32":
            raise TypeError("argument of type 'NoneType' is not iterable")
        if name is None or ".so" in name:
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *arguments)


@pytest.fixture(params=ABSENT)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The system's name as ``sys.platform`` has it, in a process that lacks what that system lacks."""

    def refuse(*arguments: object, **more: object) -> NoReturn:
        raise OSError("a required privilege is not held by the client")

    name: str = request.param
    fcntl = pytest.importorskip("fcntl", reason="this is Windows itself")
    for owner, absent in ABSENT[name].items():
        for attribute in absent:
            monkeypatch.delattr(owner, attribute)
    for module in MODULES[name]:
        monkeypatch.setitem(sys.modules, module, None)
    if name == "win32":
        monkeypatch.setattr(os, "symlink", refuse)
        monkeypatch.setitem(sys.modules, "msvcrt", FileLocks(fcntl))
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(sys, "platform", name)
    loaded = set(sys.modules)
    yield name
    for module in sys.modules.keys() - loaded:
        if module.startswith("tensorrt"):  # did not find its libraries, and is to look again in later tests
            del sys.modules[module]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_answers(system: str, bundle: Path) -> None:
    recorded = np.load(bundle.with_suffix(".npz"))
    model = load(bundle)
    generated = model.generate(recorded["ids"], recorded["mask"], max_new_tokens=12, num_beams=3)
    assert generated.tolist() == recorded["generated"].tolist()


def test_a_bundle_is_written_and_replaced(system: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for variant in ("first", "second"):
        with writing(out, force=True) as folder:
            (folder / "weights.safetensors").write_text(variant)
            write_manifest(folder, variant=variant)
            with pytest.raises(UserError, match="another export is writing"), writing(out, force=True):
                pass
    assert is_bundle(out)
    assert (out / "weights.safetensors").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_memory_and_cores_are_known(system: str) -> None:
    assert available_cores() >= 1
    peak = peak_mib()
    assert peak is None if system == "win32" else peak and peak > 0


def test_on_windows_the_peak_is_that_of_the_working_set(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system != "win32":
        pytest.skip("Windows only")
    memory = types.SimpleNamespace(peak_wset=3 * 2**20)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: memory)
    assert peak_mib() == 3


def test_doctor_looks_at_every_target(system: str) -> None:
    result = doctor.run(doctor.DoctorOptions(), Silent())
    rows = {row["target"]: row for row in result.data["targets"]}
    assert rows["onnxruntime"]["can_run"]
    assert not rows["tensorrt-rtx"]["can_run"]
    result.show(Console(file=io.StringIO()))


def test_inspect_describes_a_bundle(system: str) -> None:
    pytest.importorskip("onnx")
    said = io.StringIO()
    inspect.run(inspect.InspectOptions(str(BUNDLES[0])), Silent()).show(Console(file=said, width=200))
    assert "weights.safetensors" in said.getvalue()


def test_free_memory_is_known(system: str) -> None:
    memory = pytest.importorskip("t5edge.parity.memory")
    assert 2**26 < memory.free_bytes() < 2**46


def test_no_library_is_opened_without_a_name() -> None:
    """``ctypes.CDLL(None)`` is a TypeError on Windows; ruff's list of banned names cannot say so."""
    files = [path for path in ROOT.rglob("*.py") if not {"tests", "build"} & set(path.relative_to(ROOT).parts)]
    sources = {path: path.read_text(encoding="utf-8") for path in files if ".venv" not in path.parts}
    assert len(sources) > 100
    assert [path for path, text in sources.items() if "CDLL(None" in text or "PyDLL(None" in text] == []
