from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t5edge.errors import UserError
from t5edge.tools.answers import answers_to, count_lines, read_prompts

RUN = {"bundle": "abc", "settings": {"num_beams": 1}}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_bytes("eins\n\nzwölf\r\nlast".encode())
    return path


def answer(prompts: Path, out: Path, upto: int | None = None, force: bool = False, **run: Any) -> int:
    """Answer up to a prompt and stop there as a kill would; returns how many were there already."""
    with answers_to(prompts, out, RUN | run, force=force) as answers:
        for number, text in enumerate(read_prompts(prompts, answers.done), start=answers.done):
            if number == upto:
                raise KeyboardInterrupt
            answers.write(number, text, [text.upper()])
        return answers.done


def test_every_line_is_a_prompt(prompts: Path) -> None:
    assert count_lines(prompts) == 4
    assert list(read_prompts(prompts)) == ["eins", "", "zwölf", "last"]
    assert list(read_prompts(prompts, 2)) == ["zwölf", "last"]


def test_what_is_cut_off_goes_on(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(prompts, out, upto=2)
    assert not out.exists()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b'{"index": 2, "sour')
    assert answer(prompts, out) == 2
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["target"] for row in rows] == ["EINS", "", "ZWÖLF", "LAST"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_nothing_is_replaced_unasked(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists; pass --force"):
        answer(prompts, out)
    assert out.read_text() == "mine"
    assert answer(prompts, out, force=True) == 0
    assert len(out.read_text("utf-8").splitlines()) == 4


def test_answers_of_another_run_are_not_mixed(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(prompts, out, upto=2)
    with pytest.raises(UserError, match="another bundle, file or setting; pass --force to begin anew"):
        answer(prompts, out, bundle="def")
    prompts.write_text("other\n")
    with pytest.raises(UserError, match="another bundle, file or setting"):
        answer(prompts, out)
    assert answer(prompts, out, force=True) == 0
    assert json.loads(out.read_text("utf-8"))["source"] == "other"


def test_several_answers_are_a_list(prompts: Path, tmp_path: Path) -> None:
    with answers_to(prompts, tmp_path / "o", RUN, force=False) as answers:
        answers.write(0, "eins", ["a", "b"])
    assert json.loads((tmp_path / "o").read_text()) == {"index": 0, "source": "eins", "target": ["a", "b"]}


def test_unusable_prompts_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    with pytest.raises(UserError, match="cannot be read"):
        count_lines(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        count_lines(path)
    path.write_bytes(b"ok\ncaf\xe9 the\n")
    with pytest.raises(UserError, match=r"line 2 is not UTF-8 \(byte 4\)"):
        list(read_prompts(path))
