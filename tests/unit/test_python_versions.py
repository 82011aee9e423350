"""The device side runs on Python 3.10: its syntax and its use of the standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEVICE = ("__init__.py", "errors.py", "progress.py", "options.py", "cli.py", "bundle", "runtime", "engines", "commands")
FILES = sorted(
    file for name in DEVICE for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_syntax_is_that_of_3_10(file: Path) -> None:
    ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10))


def newest_needed(*files: Path) -> str:
    command = [sys.executable, "-c", "import vermin; vermin.main()", "--target=3.10-", "-vvv", "--no-tips"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False, timeout=60)
    assert "Minimum required versions" in done.stdout, done.stdout + done.stderr
    return "" if done.returncode == 0 else done.stdout


def test_the_standard_library_is_that_of_3_10() -> None:
    assert newest_needed(*FILES) == ""


def test_a_newer_function_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text("import hashlib\nhashlib.file_digest(open('x', 'rb'), 'sha256')\n")
    assert "3.11" in newest_needed(tmp_path / "new.py")
