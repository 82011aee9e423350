"""The house keeps its order: who imports whom, what is packaged, how long a file is, that every module has its test."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = CONFIGURATION["tool"]["setuptools"]["packages"]
FOLDERS = [ROOT / Path(*name.split(".")[1:]) for name in PACKAGES]
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.py"))
ROOT_FILES = {"__init__", "cli", "errors", "options", "pipeline", "progress"}
NOT_PACKAGED = {"benchmarks", "build", "docs", "examples", "tests"}
LONGEST_FILE, LONGEST_FUNCTION = 350, 40
TESTED_ROOMS = ("bundle", "runtime/generation", "kernels", "exporter/graph")
HEAVY = {"torch", "transformers"}


def test_the_rooms_keep_their_import_contracts(capsys: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert code == 0, capsys.readouterr().out


def test_no_modules_import_each_other() -> None:
    """Lazy imports and those for type checkers count."""
    graph = grimp.build_graph("t5edge", cache_dir=None)
    assert len(graph.modules) > len(FILES) // 2
    circles = {
        f"{module} -> {imported}"
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=imported, imported=module)
    }
    assert circles == set()


def test_the_root_holds_six_files() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_FILES


def test_every_folder_with_code_is_packaged() -> None:
    rooms = [path for path in ROOT.iterdir() if path.name not in NOT_PACKAGED and path.name.isidentifier()]
    folders = {file.parent.relative_to(ROOT) for room in rooms for file in room.rglob("*.py")} | {Path()}
    assert len(folders) > 20
    assert sorted(PACKAGES) == sorted(".".join(("t5edge", *folder.parts)) for folder in folders)


def test_files_and_functions_are_short() -> None:
    assert len(FILES) > 100
    assert [*_long_files(), *_long_functions()] == []


def _long_files() -> Iterator[str]:
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            yield f"{path.relative_to(ROOT)}: {lines} lines"


def _long_functions() -> Iterator[str]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    yield f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


@pytest.mark.parametrize("room", TESTED_ROOMS)
def test_every_module_has_its_test_file(room: str) -> None:
    modules = [path for path in (ROOT / room).rglob("*.py") if path.stem != "__init__"]
    assert modules
    missing = [str(path.relative_to(ROOT)) for path in modules if not _is_tested(path)]
    assert missing == []


def _is_tested(module: Path) -> bool:
    """In a file of its name; an operator's contract and its fusion may share one, which then imports both."""
    place = module.parent.relative_to(ROOT)
    folders = [TESTS / group / place for group in ("unit", "pipeline")]
    if any((folder / f"test_{module.stem}.py").is_file() for folder in folders):
        return True
    name = ".".join(("t5edge", *place.parts, module.stem))
    neighbours = [file for folder in folders if module.stem == "contract" for file in folder.glob("test_fusion.py")]
    return any(name in _imported(file) for file in neighbours)


def test_unit_tests_import_no_torch() -> None:
    tests = list((TESTS / "unit").rglob("test_*.py"))
    assert len(tests) > 20
    assert {str(path.relative_to(TESTS)): found for path in tests if (found := _heavy(path))} == {}


def _heavy(path: Path) -> set[str]:
    """Heavy packages that a test file, or a file of support that it imports, imports at its top."""
    found = set()
    for name in _imported(path):
        if name.startswith("support."):
            found |= _heavy(TESTS / f"{name.replace('.', '/')}.py")
        found |= {name.partition(".")[0]} & HEAVY
    return found


def _imported(path: Path) -> set[str]:
    """Modules that a file imports at its top, without those for type checkers."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names
