"""Commands and names in the documentation are the program's: read by its own parser, without running them."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_pages import command_page, commands
from error_pages import ERRORS, messages, troubleshooting_page
from support.docs import (
    INDENTED,
    INLINE,
    LISTED,
    PROGRAM,
    PROGRAMS,
    ROOT,
    SHELLS,
    Block,
    blocks,
    command_lines,
    config_file,
    declared_options,
    listed_commands,
    outside,
    pages,
    program_file,
    program_lines,
)
from t5edge.bundle.precision import precision
from t5edge.commands.arguments import parse
from t5edge.runtime.backend import find_backend
from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.model import BundleModel

PLACEHOLDERS = {"V": "t5-demo", "P": "fp32", "N": "4", "...": "a text"}
BLOCKS = [block for page in pages() for block in blocks(page)]
LINES = [
    pytest.param(arguments, id=f"{block.place} {' '.join(arguments)[:60]}")
    for block in BLOCKS
    if block.language in SHELLS
    for arguments in command_lines(block.text)
]
PARSERS = commands()


def test_the_pages_hold_commands() -> None:
    assert len(pages()) > 20
    assert len(LINES) > 40
    assert {block.language for block in BLOCKS} == {*SHELLS, *PROGRAMS}


def test_commands_that_are_run_stand_in_fences() -> None:
    """One form: ```sh. Listings of commands with their explanations may be indented."""
    wrong = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()}"
        for page in pages()
        for number, line in outside(page)
        if INDENTED.match(line) and not LISTED.search(line)
    ]
    assert wrong == []


@pytest.mark.parametrize("arguments", LINES)
def test_command_lines_are_understood(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and their values, as the command itself takes them before it begins."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export.toml").write_text(config_file())
    command, given = parse([PLACEHOLDERS.get(word, word) for word in arguments])
    names = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    known = command.options.__dataclass_fields__
    command.options(**{name: value for name, value in names.items() if name in known})
    chosen = names.get("precision")
    for name in (chosen,) if isinstance(chosen, str) else chosen or ():
        precision(name)
    targets = names.get("target")
    for name in (targets,) if isinstance(targets, str) else targets or ():
        find_backend(name)


def test_programs_of_the_repository_have_the_options_that_pages_give_them() -> None:
    """Benchmarks and the examples' scripts, in fences and in sentences."""
    found = [(block.place, ROOT / block.page, block.text) for block in BLOCKS if block.language in SHELLS]
    for page in pages():
        found += [(f"{page.name}:{number}", page, text) for number, text in sentences(page, PROGRAM)]
    lines = [(place, page, *program) for place, page, text in found for program in program_lines(text)]
    assert len(lines) > 10
    wrong = []
    for place, page, program, arguments in lines:
        known = declared_options(program_file(program, page))
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        wrong += [f"{place}: {program} has no {option}" for option in sorted(given - known)]
    assert wrong == []


def sentences(page: Path, code: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Code in the lines of a page that are in no fence."""
    return ((number, text) for number, line in outside(page) for text in code.findall(line))


def test_commands_in_lists_and_sentences_have_their_options() -> None:
    """Rows of listings and code in a line, which may leave out what is needed besides."""
    found = [(page, number, command) for page in pages() for number, command in listed_commands(page)]
    assert len(found) > 10
    for page in pages():
        found += [(page, number, text.removeprefix("t5edge ")) for number, text in sentences(page, INLINE)]
    wrong = [f"{page.name}:{number}: {text}" for page, number, text in found if not understood(text)]
    assert wrong == []


def understood(text: str) -> bool:
    name, *words = text.split()
    if name == "COMMAND" or name.startswith("-"):
        return True
    if name not in PARSERS:
        return False
    known = {option for action in PARSERS[name]._actions for option in action.option_strings}
    return {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"} <= known


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.place) for block in BLOCKS if block.language in PROGRAMS]
)
def test_names_in_programs_exist(block: Block) -> None:
    """What is imported from the package, and what a model is asked for."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("t5edge"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "t5edge":
            assert node.attr in importlib.import_module("t5edge").__all__
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "model":
            assert hasattr(BundleModel, node.attr) or node.attr in fields_of(BundleModel), node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "model.generate":
            options = {"prompt", "return_scores", "assistant", *GenerationOptions.__dataclass_fields__}
            assert {keyword.arg for keyword in node.keywords} <= {*options, "normalize_logits"}


def fields_of(kind: type) -> set[str]:
    """Attributes that instances get when they are made."""
    return {name for base in kind.__mro__ if base is not object for name in base.__init__.__code__.co_names}


@pytest.fixture(scope="module")
def found_errors() -> str:
    return troubleshooting_page(ROOT)


def package_sources() -> Iterator[Path]:
    rooms = ("bundle", "runtime", "engines", "kernels", "exporter", "calibration", "parity", "tools", "commands")
    yield from (path for room in rooms for path in sorted((ROOT / room).rglob("*.py")))
    yield from sorted(ROOT.glob("*.py"))


def test_every_error_of_the_source_is_indexed() -> None:
    """As many as the text of the source has calls, file by file, and each says something."""
    call = re.compile(r"(?<!class )\b(?:" + "|".join(ERRORS) + r")\((?!Exception)")
    listed = messages(ROOT)
    wanted = {
        path.relative_to(ROOT).as_posix(): len(call.findall(path.read_text("utf-8"))) for path in package_sources()
    }
    counts = {file: sum(message.file == file for message in listed) for file in wanted}
    assert counts == wanted
    assert sum(wanted.values()) > 250
    assert [message for message in listed if not message.text] == []


def test_the_words_of_every_error_are_on_the_page(found_errors: str) -> None:
    """Every literal part of a message that is written where it is raised, of three words and more."""
    missing = []
    for path in package_sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
                texts = [str(part.value) for part in parts if str(part.value).count(" ") > 2]
                spelled = [text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for text in texts]
                missing += [(path.name, text) for text in spelled if text not in found_errors]
    assert missing == []


def test_reasons_that_stand_in_messages_are_on_the_page(found_errors: str) -> None:
    for text in ("is a file; choose another --out.", "top_p must be between 0 and 1", "was built from another"):
        assert text in found_errors


@pytest.mark.parametrize("name", PARSERS)
def test_pages_of_commands_name_every_option(name: str) -> None:
    page = command_page(name, PARSERS[name])
    actions = [action for action in PARSERS[name]._actions if not isinstance(action, argparse._HelpAction)]
    assert actions
    assert [action.dest for action in actions for option in action.option_strings if option not in page] == []
