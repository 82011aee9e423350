"""Lines in, lines out: nothing is lost, added or rewritten between a person's text and the model."""

from __future__ import annotations

import io

import pytest

from t5edge.commands.generate import read_lines, write_lines
from t5edge.errors import UserError


def stream(data: bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding, newline="")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\n\nb\n  \nc\n", ["a", "", "b", "  ", "c"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        ("caf\u00e9\u2028same line\n".encode(), ["caf\u00e9\u2028same line"]),
        (b"\n", [""]),
    ],
)
def test_every_line_is_a_prompt(data: bytes, lines: list[str]) -> None:
    assert read_lines(stream(data, "latin-1")) == lines  # UTF-8 whatever the terminal's encoding


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "there is no prompt"), (b"ok\ncaf\xe9 the\n", r"line 2 is not UTF-8 \(byte 4\)")]
)
def test_what_is_no_text_is_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_lines(stream(data))
    with pytest.raises(UserError, match="standard input is closed"):
        read_lines(None)


def test_answers_are_written_as_they_are() -> None:
    out = io.StringIO()
    answers = ["x[i:b:c]", "see :warning:", "name\tvalue", "[/x]", "C:\\a:b:c", "", "  two  spaces  "]
    write_lines(out, answers)
    assert out.getvalue() == "".join(f"{answer}\n" for answer in answers)


def test_an_encoding_without_the_character_is_named() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    with pytest.raises(UserError, match=r"'\\U0001f999'.*\(latin-1\) lacks"):
        write_lines(out, ["\U0001f999"])
