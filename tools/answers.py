"""Answers to a file of prompts, a JSON line each, written as they come; a run that was cut off goes on where it was.

partial : OUT.partial, the answers so far, in order
record  : OUT.partial.json, what they answer: the bundle's and the file's hashes and the settings
out     : all answers, once they are there
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from t5edge.bundle.files import sha256_of, write_json
from t5edge.errors import UserError
from t5edge.runtime.answers import Answer


def count_lines(path: Path) -> int:
    """Lines of a file, the last one with or without its end.

    Raises:
        UserError: it cannot be read, or there is none.
    """
    try:
        with path.open("rb") as file:
            count = sum(1 for _ in file)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from error
    if not count:
        raise UserError(f"'{path}' is empty; give it one prompt per line.")
    return count


def read_prompts(path: Path, skipped: int = 0) -> Iterator[str]:
    """The lines of a UTF-8 file behind the first ``skipped``, without their ends; an empty line is a prompt too.

    Raises:
        UserError: a line that is not UTF-8.
    """
    with path.open("rb") as file:
        for number, line in enumerate(islice(file, skipped, None), start=skipped + 1):
            try:
                yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"'{path}', line {number} is not UTF-8 (byte {error.start + 1}); convert it to UTF-8."
                ) from error


def answer_fields(answers: Sequence[str | Answer]) -> dict[str, Any]:
    """``target``, and what it scored if that is known; lists where there are several answers."""
    columns: dict[str, list[Any]] = {"target": [getattr(answer, "text", answer) for answer in answers]}
    scored = [answer for answer in answers if isinstance(answer, Answer)]
    if scored:
        columns["score"] = [_rounded(answer.score) for answer in scored]
        columns["tokens"] = [list(answer.tokens) for answer in scored]
        columns["token_scores"] = [[_rounded(score) for score in answer.token_scores] for answer in scored]
    if any(answer.beam_score is not None for answer in scored):
        columns["beam_score"] = [_rounded(answer.beam_score or 0.0) for answer in scored]
    return {name: values[0] if len(values) == 1 else values for name, values in columns.items()}


def answer_lines(answer: str | Answer) -> list[str]:
    """The text; with scores its own stands before it, then a line for each token, behind a tab."""
    if isinstance(answer, str):
        return [answer]
    tokens = zip(answer.token_scores, answer.tokens, strict=True)
    return [f"{answer.score:.4f}\t{answer.text}", *(f"\t{score:.4f}\t{token}" for score, token in tokens)]


def _rounded(score: float) -> float:
    """What float32 knows of it."""
    return float(f"{score:.6g}") + 0.0  # no -0.0


@dataclass
class Answers:
    """Answers to ``prompts`` under way to ``out``.

    Attributes:
        done: answers that were there already.
        file: where the next ones go.
    """

    out: Path
    done: int
    file: IO[bytes]

    def write(self, number: int, source: str, targets: Sequence[str | Answer]) -> None:
        """The answers to prompt ``number``, counted from 0; see ``answer_fields``."""
        line = json.dumps({"index": number, "source": source, **answer_fields(targets)}, ensure_ascii=False)
        self.file.write(line.encode("utf-8", "surrogatepass") + b"\n")
        self.file.flush()


@contextmanager
def answers_to(prompts: Path, out: Path, run: dict[str, Any], *, force: bool) -> Iterator[Answers]:
    """Begin or go on; ``out`` is there once the block ends well.

    ``run``: what decides the answers besides the prompts: the bundle's hash, the settings.

    Raises:
        UserError: ``out`` exists, or unfinished answers of another run do, and not ``force``.
    """
    partial, record = out.with_name(out.name + ".partial"), out.with_name(out.name + ".partial.json")
    run = {**run, "prompts": sha256_of(prompts)}
    if out.exists() and not force:
        raise UserError(f"'{out}' exists; pass --force to replace it, or another --out.")
    done = 0
    if partial.exists() and record.exists():
        if json.loads(record.read_text("utf-8")) == json.loads(json.dumps(run)):
            done = _cut_to_whole_lines(partial)
        elif not force:
            raise UserError(
                f"'{partial}' holds answers of another bundle, file or setting; pass --force to begin anew, or another "
                "--out."
            )
    if not done:
        partial.unlink(missing_ok=True)
        write_json(record, run)
    with partial.open("ab") as file:
        yield Answers(out, done, file)
    partial.replace(out)
    record.unlink(missing_ok=True)


def _cut_to_whole_lines(partial: Path) -> int:
    """How many whole lines there are; what stands behind them, cut off in the middle, goes."""
    with partial.open("r+b") as file:
        data_end, count = 0, 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            data_end, count = data_end + len(line), count + 1
        file.truncate(data_end)
    return count
