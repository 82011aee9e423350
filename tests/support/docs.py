"""The commands of the documentation: fenced blocks, what they need, and the command lines in them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS, PROGRAMS = ("sh", "powershell"), ("python",)
FENCE = re.compile(r"^```(\w*)$")
NEEDS = re.compile(r"^<!-- needs: (.+) -->$")
INDENTED = re.compile(r"^ {4}(?:\$ )?(?:t5edge|pip|make|python3?|pytest|apt|scp|ssh|npm) \S")
LISTED = re.compile(r"\S {2,}\S")
"""A row of a listing: a command, two spaces or more, what it does. It is read and not run."""
INLINE = re.compile(r"`(t5edge [^`]+)`")
PROGRAM = re.compile(r"`(python [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``needs``: why the tests do not run it, None where they do."""

    page: str
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """What a user is sent to."""
    found = [path for path in (ROOT / "docs").rglob("*.md") if "adr" not in path.parts]
    beside = [*(ROOT / "benchmarks").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(found), *sorted(beside)]


def blocks(page: Path) -> list[Block]:
    """The shell and Python blocks of a page, in their order."""
    found, lines = [], page.read_text("utf-8").splitlines()
    start = language = None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, language = number, fence[1]
            continue
        if language in (*SHELLS, *PROGRAMS):
            needs = NEEDS.match(lines[start - 1]) if start else None
            text = "\n".join(lines[start + 1 : number])
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, start + 1, str(language), text, needs and needs[1]))
        start = None
    return found


def config_file() -> str:
    """The file that pages call ``export.toml``: it stands in docs/ci.md."""
    return (ROOT / "docs" / "ci.md").read_text("utf-8").partition("```toml\n")[2].partition("```")[0]


def outside(page: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are in no fence."""
    inside = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every ``t5edge`` in a shell's text, also of one that another command is given in quotes."""
    for command in simple_commands(text):
        yield from _arguments(command)


def program_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """The module or script of this repository that a ``python`` in a shell's text runs, as named, and its arguments."""
    for command in simple_commands(text):
        place = next((index for index, word in enumerate(command) if Path(word).name == "python"), len(command))
        program, *arguments = command[place + 1 :] or [""]
        if program == "-m":
            program, *arguments = arguments
        if program.startswith("benchmarks.") or program.endswith(".py"):
            yield program, arguments


def program_file(program: str, page: Path) -> Path:
    """The file of a module, or of a script beside the page or in the root."""
    if not program.endswith(".py"):
        module = ROOT / program.replace(".", "/")
        return module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
    return page.parent / program if (page.parent / program).is_file() else ROOT / program


def declared_options(file: Path) -> set[str]:
    """The options that a program declares with ``add_argument``."""
    calls = (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call))
    named = [call.args for call in calls if ast.unparse(call.func).endswith("add_argument")]
    return {word.value for words in named for word in words if isinstance(word, ast.Constant)}


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell's text."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|()"):
                yield command
                command = []
            else:
                command.append(word)


def _arguments(command: list[str]) -> Iterator[list[str]]:
    names = [Path(word).name for word in command]
    if "t5edge" in names and names[0] not in ("pip", "scp"):
        yield list(takewhile(lambda word: not set(word) <= set("<>"), command[names.index("t5edge") + 1 :]))
    for word in command:
        if "t5edge " in word:
            yield from command_lines(word)


def listed_commands(page: Path) -> Iterator[tuple[int, str]]:
    """Rows of listings: a command up to its explanation, with the lines below it that name more options."""
    command = ""
    for number, line in outside(page):
        words = re.split(r" {2,}", line.strip())
        if line.startswith("    t5edge "):
            command = words[0].split()[1]
            yield number, words[0].removeprefix("t5edge ")
        elif command and line.startswith("     ") and words[0].startswith("--"):
            yield number, f"{command} {words[0]}"
        elif not line.startswith("    "):
            command = ""
