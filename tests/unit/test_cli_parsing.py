"""Where flags may stand, and what a wrong command line says."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from t5edge import cli


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
