"""What the wheel and the source distribution hold."""

from __future__ import annotations

import re
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from support.environments import ROOT, build

ROOMS = ("bundle", "calibration", "commands", "engines", "exporter", "kernels", "parity", "runtime", "tools")
FILES = ("__init__.py", "cli.py", "errors.py", "options.py", "pipeline.py", "progress.py", "py.typed")
BESIDE = (
    ".ci/run",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "mkdocs.yml",
    "pyproject.toml",
)


def package_files(source: Path) -> set[str]:
    """Every file of the package in a source folder, code and data alike."""
    found = {file for room in ROOMS for file in (source / room).rglob("*") if file.is_file()}
    found |= {source / name for name in FILES}
    return {file.relative_to(source).as_posix() for file in found if "__pycache__" not in file.parts}


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(
            next(entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}"))
        ).decode()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert metadata_of(wheel, "top_level.txt").split() == ["t5edge"]
    found = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert found == {f"t5edge/{name}" for name in package_files(ROOT)}
    assert len(found) > 150


def test_the_source_distribution_holds_the_project(sources: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", sources, tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    beside = {
        file.relative_to(sources).as_posix()
        for folder in ("tests", "docs", "examples", "benchmarks")
        for file in (sources / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    missing = (package_files(sources) | beside | set(BESIDE)) - names
    assert missing == set()
    assert not [name for name in names if "__pycache__" in name]
    unpacked = next(path for path in tmp_path.iterdir() if path.is_dir())
    assert contents(build("wheel", unpacked, tmp_path)) == contents(wheel)


def test_the_metadata_says_what_an_index_shows(wheel: Path) -> None:
    text = metadata_of(wheel, "METADATA")
    headers = HeaderParser().parsestr(text)
    assert (headers["Name"], headers["Requires-Python"], headers["License-Expression"]) == (
        "t5edge",
        ">=3.10",
        "Apache-2.0",
    )
    classifiers = headers.get_all("Classifier") or []
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)} <= set(classifiers)
    assert "Typing :: Typed" in classifiers
    base = [line for line in headers.get_all("Requires-Dist") or [] if "extra ==" not in line]
    heavy = r"torch|transformers|onnx|onnx-ir|onnxscript|safetensors|onnxruntime|tensorrt"
    assert not [line for line in base if re.match(rf"({heavy})\b", line)]
    relative = re.findall(r"\]\((?!https?://|#|mailto:)[^)]*\)", str(headers.get_payload()))
    assert relative == [], "an index shows the README alone: relative links lead nowhere there"


@pytest.mark.parametrize(
    "extras", [("onnxruntime",), ("onnxruntime-gpu",), ("rtx", "onnxruntime"), ("tensorrt", "onnxruntime"), ("export",)]
)
def test_no_extra_brings_a_second_owner_of_an_import_name(wheel: Path, extras: tuple[str, ...]) -> None:
    lines = HeaderParser().parsestr(metadata_of(wheel, "METADATA")).get_all("Requires-Dist") or []
    brought = {re.split(r"[^\w-]", line)[0] for line in lines for extra in extras if f'extra == "{extra}"' in line}
    assert brought
    assert len(brought & {"onnxruntime", "onnxruntime-gpu"}) == (0 if extras == ("export",) else 1)
