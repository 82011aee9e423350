"""Where flags may stand, and what a wrong command line says."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t5edge import cli
from t5edge.errors import UserError

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]


def given(*arguments: str) -> dict[str, Any]:
    return cli.parse(arguments)[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "B", "--num-beams", "4", "one", "two"),
        ("generate", "--num-beams", "4", "B", "one", "two"),
        ("generate", "B", "one", "--num-beams", "4", "two"),
        ("generate", "B", "one", "two", "--num-beams", "4"),
        ("generate", "B", "one", "two", "--num-beams=4"),
    ],
)
def test_flags_stand_anywhere_among_the_prompts(arguments: tuple[str, ...]) -> None:
    options = given(*arguments)
    assert (options["bundle"], options["text"], options["num_beams"]) == ("B", ["one", "two"], 4)


def test_flags_between_prompts_leave_every_prompt_in_order() -> None:
    options = given("generate", "B", "a", "--json", "b", "--do-sample", "c", "--top-k", "3", "d")
    assert options["text"] == ["a", "b", "c", "d"]
    assert (options["json"], options["do_sample"], options["top_k"]) == (True, True, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("generate", "B"), []),
        (("generate", "B", "-"), ["-"]),
        (("generate", "B", "--num-beams", "4", "-"), ["-"]),
        (("generate", "B", "-5 degrees"), ["-5 degrees"]),
        (("generate", "B", "--", "--num-beams", "4"), ["--num-beams", "4"]),
        (("generate", "B", "--num-beams", "2", "--", "--help"), ["--help"]),
        (("generate", "B", ""), [""]),
    ],
)
def test_prompts_that_look_like_flags(arguments: tuple[str, ...], text: list[str]) -> None:
    assert given(*arguments)["text"] == text


def test_lists_of_names_are_repeated_or_follow_one_flag() -> None:
    assert given("export", "--variant", "a", "b", "--variant", "c", "--precision", "fp32")["variant"] == ["a", "b", "c"]
    assert given("build", "B", "--target", "tensorrt-rtx", "--compute-capability", "8.6", "8.9") == {
        "bundle": "B",
        "target": ["tensorrt-rtx"],
        "compute_capability": ["8.6", "8.9"],
        "no_fuse": False,
        "separate_weights": False,
        "force": False,
        "dry_run": False,
        "json": False,
    }


def test_defaults_are_those_of_the_dataclasses() -> None:
    for command in cli.COMMANDS:
        arguments = [command.name, *(["B"] if "bundle" in command.options.__dataclass_fields__ else [])]
        needed: dict[str, Any] = {"variant": ("v",)} if command.name == "export" else {}
        arguments += ["--variant", "v"] if needed else []
        options = {key: value for key, value in given(*arguments).items() if key not in ("json", "bundle")}
        chosen = command.options(**{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()})
        assert chosen == command.options(**needed), command.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "t5edge: the following arguments are required: COMMAND"),
        (("frobnicate",), "t5edge: argument COMMAND: invalid choice: 'frobnicate'"),
        (("--", "doctor"), "t5edge: "),
        (("generate",), "t5edge generate: the following arguments are required: BUNDLE"),
        (("generate", "--num-beams", "4"), "t5edge generate: the following arguments are required: BUNDLE"),
        (("generate", "B", "--num-beams", "four", "x"), "t5edge generate: argument --num-beams: invalid int value"),
        (("generate", "B", "--nums", "4", "x"), "t5edge generate: unrecognized arguments: --nums"),
        (("inspect", "B", "C"), "t5edge inspect: unrecognized arguments: C"),
    ],
)
def test_a_wrong_line_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), *((c.name, "--help") for c in cli.COMMANDS)])
def test_help_and_version_exit_0(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, err) == (0, "")
    assert "t5edge" in out


def test_a_bug_keeps_its_traceback_and_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("t5edge.commands.doctor.run", broken)
    assert cli.main(["doctor"]) == 70
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace[0].startswith("Traceback")
    assert trace[-1] == "ValueError: a bug"
    assert last == "t5edge doctor: this is a bug of t5edge; please report it with the lines above"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (TimeoutError("timed out"), 2),
        (OSError(errno.EBADF, "Bad file descriptor"), 70),
        (OSError("raised by hand"), 70),
    ],
    ids=repr,
)
def test_what_a_file_system_refuses_is_no_bug_and_other_errors_of_the_system_are(
    monkeypatch: pytest.MonkeyPatch, error: OSError, code: int
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("t5edge.commands.doctor.run", broken)
    assert cli.main(["doctor"]) == code


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("t5edge.commands.doctor.run", too_large)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("t5edge doctor: the memory does not suffice")


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_option_is_in_the_help_with_a_text_of_its_own(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command.name, "--help"])
    shown = capsys.readouterr().out
    for name, entry in command.options.__dataclass_fields__.items():
        spelled = name.upper() if entry.metadata.get("positional") else f"--{name.replace('_', '-')}"
        assert re.search(rf"^ +{spelled}\b", shown, re.MULTILINE), name
        words = entry.metadata["help"]
        assert len(words) > 8
        assert words.split()[0] in shown
        assert not words.endswith(".")
    assert all(flag in shown for flag in ("--json", "--quiet", "--verbose"))
    assert max(map(len, shown.splitlines())) <= 80
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == sorted(set(headings), key=headings.index)
    assert len(headings) == 1 + len(command.groups) + ("positional arguments:" in headings)


def test_the_groups_of_the_help_name_options() -> None:
    for command in cli.COMMANDS:
        named = [name for names in command.groups.values() for name in names]
        assert len(named) == len(set(named))
        assert set(named) <= set(command.options.__dataclass_fields__)


def test_flags_in_the_docs_exist() -> None:
    """In lines that begin with ``t5edge COMMAND``, and those that go on below them."""
    found = 0
    for line in (line for path in DOCS for line in path.read_text("utf-8").splitlines()):
        called = re.match(r"(?: {4}|- (?:run: )?|\$ )*t5edge (\w+)(.*)", line)
        command = next((entry for entry in cli.COMMANDS if called and entry.name == called[1]), None)
        if called is None or command is None:
            continue
        known = {*command.options.__dataclass_fields__, "json", "quiet", "verbose", "help"}
        flags = [flag.replace("-", "_") for flag in re.findall(r"(?<=\s)--([a-z][a-z-]*)", called[2])]
        assert set(flags) <= known, line
        found += len(flags)
    assert found > 60


def test_one_of_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    assert given("doctor", "--quiet")["quiet"] is True
    assert given("doctor", "--verbose")["verbose"] is True
    with pytest.raises(SystemExit):
        cli.parse(["doctor", "--quiet", "--verbose"])
    assert "not allowed with" in capsys.readouterr().err


def configured(tmp_path: Path, text: str, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "export.toml"
    file.write_text(text, encoding="utf-8")
    return given("export", "--config", str(file), *arguments)


def test_a_file_gives_what_the_command_line_leaves_out(tmp_path: Path) -> None:
    text = """
        variant = "t5-demo"
        precision = ["int8", "fp16"]
        max-batch = 4
        max_source_length = 64
        time-budget = 3
        no-fuse = true
    """
    options = configured(tmp_path, text, "--precision", "fp32", "--max-batch", "5", "--force")
    assert (options["variant"], options["precision"]) == (["t5-demo"], ["fp32"])
    assert (options["max_batch"], options["max_source_length"], options["max_target_length"]) == (5, 64, 256)
    assert (options["no_fuse"], options["force"], options["blockwise"]) == (True, True, False)
    assert isinstance(options["time_budget"], float)
    assert configured(tmp_path, "max-batch = 4", "--max-batch", "16")["max_batch"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-bach = 4", "'max-bach' is no option; did you mean 'max-batch'?"),
        ("zzz = 4\nforce = 1", "'zzz' is no option; 'force' is 1; true or false is needed"),
        ("max-batch = true", "'max-batch' is True; a whole number is needed"),
        ("max-batch = 4.5", "'max-batch' is 4.5; a whole number is needed"),
        ("target = [1]", "'target' is [1]; a text is needed, or a list"),
        ('out = ["a"]', "'out' is ['a']; a text is needed"),
        ('cache = "ring"', "'cache' is 'ring'; choose one of concat, in-place, both"),
        ('config = "other.toml"', "'config' is no option"),
        ("[export]\nforce = true", "'export' is no option"),
        ("variant t5-demo", "is no TOML (Expected '='"),
        ('variant = "\x07"', "is no TOML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "export.toml"
    file.write_text(text, encoding="utf-8")
    assert cli.main(["export", "--config", str(file)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"t5edge export: '{file}'")
    assert message in err


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read: .*; --config takes a TOML file"):
        given("export", "--config", name)


def test_a_python_without_toml_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Python 3\.11 or later, or the package tomli: pip install tomli"):
        given("export", "--config", "export.toml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_names_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command.name in script for command in cli.COMMANDS)
    assert "max-source-length" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("t5edge ex", ["export"]),
        ("t5edge export --max-s", ["--max-source-length"]),
        ("t5edge export --cache in", ["in-place"]),
        ("t5edge report bun", ["bundles"]),
        ("t5edge export --texts tex", ["texts.txt"]),
    ],
)
def test_bash_completes(words: str, completed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "bundles").mkdir()
    (tmp_path / "texts.txt").touch()
    given = words.split()
    ask = f'COMP_WORDS=({words}); COMP_CWORD={len(given) - 1}; _shtab_t5edge; echo "${{COMPREPLY[@]}}"'
    script = f"{capsys.readouterr().out}\n{ask}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == completed


def test_the_completion_is_for_the_users_own_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert cli.main(["completion"]) == 0
    assert capsys.readouterr().out.startswith("#compdef t5edge")
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert cli.main(["completion"]) == 2
    assert "name one of bash, zsh, tcsh" in capsys.readouterr().err


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == ('t5edge completion: shtab is not installed; pip install "t5edge[completion]"\n')
