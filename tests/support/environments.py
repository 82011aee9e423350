"""The project as it is distributed, and fresh virtual environments to install it into."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCH = "torch==2.13.0"
"""An exact version, of which a machine can hold a small wheel for CPUs."""
LEFT_OUT = (".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "*.log")
OWNERS = """
import importlib.util, json
from importlib.metadata import packages_distributions

def has_files(name):
    spec = importlib.util.find_spec(name)  # of a namespace several packages may have parts
    return spec is not None and spec.origin is not None

owners = {name: sorted(set(owners)) for name, owners in packages_distributions().items() if name.isidentifier()}
print(json.dumps({name: found for name, found in owners.items() if len(found) > 1 and has_files(name)}))
"""
CHECK_RECORDS = """
import base64, hashlib, sys
from importlib.metadata import files
for package in sys.argv[1:]:
    for file in files(package):
        if file.hash:
            digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, (package, file)
"""


def build(kind: str, source: Path, folder: Path) -> Path:
    """The ``wheel`` or ``sdist`` of a source folder, in ``folder``; offline, with this environment's setuptools."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def copy_sources(folder: Path) -> Path:
    """A copy of the project, so that a build leaves nothing in it."""
    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT)))


def find_python(version: str) -> Path | None:
    """An interpreter of ``version`` that can make virtual environments; None without one."""
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    for python in [*candidates, *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]:
        if subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0:
            return python
    return None


@dataclass(frozen=True)
class Environment:
    """A virtual environment in ``folder``."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, python: Path | str = sys.executable) -> Environment:
        subprocess.run([python, "-m", "venv", folder], check=True, timeout=120)
        return cls(folder)

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin") / "python"

    def call(self, *command: str | Path, timeout: int = 600) -> subprocess.CompletedProcess[str]:
        """Run in the environment's folder, away from the project, with nothing on Python's path."""
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=clean | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def run(self, code: str, *arguments: str | Path) -> str:
        done = self.call(self.python, "-c", code, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def t5edge(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.call(self.python.with_name("t5edge"), *arguments)

    def install(self, *requirements: str) -> None:
        done = self.call(self.python, "-m", "pip", "install", "--quiet", *requirements, timeout=1800)
        assert done.returncode == 0, done.stderr

    def packages(self) -> dict[str, str]:
        """Version of every package, by normal name."""
        listed = self.call(self.python, "-m", "pip", "list", "--format", "json")
        return {row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(listed.stdout)}

    def shared_names(self) -> dict[str, list[str]]:
        """Import names that several packages own, namespaces left out."""
        found: dict[str, list[str]] = json.loads(self.run(OWNERS))
        return found

    def check_records(self, *packages: str) -> None:
        """Every file of the packages is as its package brought it."""
        self.run(CHECK_RECORDS, *packages)

    def megabytes(self) -> float:
        """Size of site-packages without pip and setuptools."""
        site = next(self.folder.glob("[Ll]ib/**/site-packages"))
        files = (file for file in site.rglob("*") if file.is_file() and not file.is_symlink())
        own = (file for file in files if file.relative_to(site).parts[0].split("-")[0] not in ("pip", "setuptools"))
        return sum(file.stat().st_size for file in own) / 1e6
