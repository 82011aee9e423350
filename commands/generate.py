"""``t5edge generate``: text in, text out, from a bundle; loads neither torch nor transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import IO, Any, TextIO

from t5edge.commands.result import Result
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

NO_SETTINGS = ("bundle", "text", "target", "keep_special_tokens")
QUIET = 32
"""Prompts up to which no progress is shown."""


@dataclass(frozen=True)
class GenerateOptions:
    """What ``generate`` takes. Unset flags leave the bundle's own generation settings in force."""

    bundle: str = option("a bundle written by export", "", positional=True)
    text: tuple[str, ...] = option("prompts; '-' or none reads one per line from standard input", (), positional=True)
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    max_new_tokens: int | None = option("most tokens to generate", None, metavar="N")
    min_new_tokens: int | None = option("fewest tokens to generate", None, metavar="N")
    num_beams: int | None = option("beams; 1 is greedy", None, metavar="N")
    length_penalty: float | None = option("exponent of the length in beam scores", None, metavar="X")
    do_sample: bool = option("draw tokens instead of taking the likeliest", False)
    temperature: float | None = option("sampling temperature", None, metavar="X")
    top_k: int | None = option("sample among the K likeliest tokens", None, metavar="K")
    top_p: float | None = option("sample among the likeliest tokens with this total probability", None, metavar="X")
    seed: int | None = option("seed of the sampling", None, metavar="N")
    repetition_penalty: float | None = option("penalty on tokens already there", None, metavar="X")
    no_repeat_ngram_size: int | None = option("no n-gram of this length twice", None, metavar="N")
    keep_special_tokens: bool = option("show end, padding and sentinel tokens in the answers", False)

    @property
    def settings(self) -> dict[str, Any]:
        """The generation options that were given."""
        names = [entry.name for entry in fields(self) if entry.name not in NO_SETTINGS]
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None and value is not False}


def run(options: GenerateOptions, progress: Progress) -> Result:
    """Answer every prompt, a line for each."""
    from t5edge.runtime.model import load

    texts = list(options.text) if options.text and options.text != ("-",) else read_lines(sys.stdin)
    model = load(options.bundle, options.target)
    model.require_decoder("text to generate")
    skipped = not options.keep_special_tokens
    with progress.stage("generate", len(texts), "prompts") if len(texts) > QUIET else nullcontext() as stage:
        told = None if stage is None else stage.advance
        answers = model.generate_text(texts, skip_special_tokens=skipped, on_batch=told, **options.settings)
    per_text = len(answers) // len(texts)
    data = [
        {"source": text, "target": answers[index * per_text : (index + 1) * per_text]}
        if per_text > 1
        else {"source": text, "target": answers[index]}
        for index, text in enumerate(texts)
    ]
    return Result({"outputs": data}, lambda console: write_lines(console.file, answers))


def read_lines(stream: TextIO | None) -> list[str]:
    """The lines of a stream as UTF-8; an empty line is a prompt like any other, so that answers line up.

    Raises:
        UserError: no stream, no line, or bytes that are not UTF-8.
    """
    if stream is None:
        raise UserError("there is no prompt and standard input is closed; pass texts as arguments.")
    data = stream.buffer.read()
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if not lines:
        raise UserError("there is no prompt; pass texts as arguments or one per line on standard input.")
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input, line {number} is not UTF-8 (byte {error.start + 1}); convert it to UTF-8."
            ) from error
    return texts


def write_lines(stream: IO[str], answers: Sequence[str]) -> None:
    """Every answer exactly as the model gave it, a line each.

    Raises:
        UserError: the stream's encoding lacks a character.
    """
    try:
        stream.write("".join(f"{answer}\n" for answer in answers))
    except UnicodeEncodeError as error:
        raise UserError(
            f"the answer holds {error.object[error.start]!a}, which standard output's encoding ({error.encoding}) "
            "lacks; set PYTHONIOENCODING=utf-8, or pass --json."
        ) from error
