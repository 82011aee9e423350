"""``t5edge generate``: text in, text out, from a bundle; loads neither torch nor transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from itertools import tee
from pathlib import Path
from typing import IO, Any, TextIO

from t5edge.commands.result import Result, shown
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

NO_SETTINGS = (
    "bundle",
    "text",
    "target",
    "keep_special_tokens",
    "file",
    "out",
    "force",
    "batch_size",
    "assistant",
    "scores",
)
QUIET = 32
"""Prompts up to which no progress is shown."""


@dataclass(frozen=True)
class GenerateOptions:
    """What ``generate`` takes. Unset flags leave the bundle's own generation settings in force."""

    bundle: str = option("a bundle written by export", "", positional=True)
    text: tuple[str, ...] = option("prompts; '-' or none reads one per line from standard input", (), positional=True)
    prompt: str | None = option("a learnt prompt of the bundle by its name, or none", None, metavar="NAME")
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
    prompt_lookup_num_tokens: int | None = option(
        "check up to N tokens a pass that are copied from the prompt or the answer; answers stay the same",
        None,
        metavar="N",
    )
    max_matching_ngram_size: int | None = option("longest match that tokens are copied behind", None, metavar="N")
    assistant: str | None = option(
        "a smaller bundle of the same vocabulary that drafts tokens to check", None, metavar="BUNDLE"
    )
    num_assistant_tokens: int | None = option("most tokens that the assistant drafts for a pass", None, metavar="N")
    scores: bool = option(
        "give natural-log probabilities: of each answer and of each of its tokens, and with beams what they rank by",
        False,
    )
    file: str | None = option("read prompts from this file, one per line", None, metavar="FILE")
    out: str | None = option(
        "with --file: write JSON lines with index, source and target; the same command goes on where it was cut off",
        None,
        metavar="FILE",
    )
    batch_size: int = option("with --file: rows under way at a time", 16, metavar="N")
    force: bool = option("with --out: replace what is there", False)
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
    from t5edge.tools.answers import answer_fields, answer_lines

    if options.file is not None:
        return run_file(options, progress)
    if options.out is not None:
        raise UserError("--out goes with --file; without it answers are printed.")
    texts = list(options.text) if options.text and options.text != ("-",) else read_lines(sys.stdin)
    model = load(options.bundle, options.target)
    model.require_decoder("text to generate")
    settings = options.settings
    if options.assistant is not None:
        settings["assistant"] = load(options.assistant, options.target)
    with progress.stage("generate", len(texts), "prompts") if len(texts) > QUIET else nullcontext() as stage:
        settings |= {"on_batch": None if stage is None else stage.advance, "return_scores": options.scores}
        answers = model.generate_text(texts, skip_special_tokens=not options.keep_special_tokens, **settings)
    each = len(answers) // len(texts)
    data = [
        {"source": text, **answer_fields(answers[index * each : (index + 1) * each])}
        for index, text in enumerate(texts)
    ]
    lines = [line for answer in answers for line in answer_lines(answer)]
    return Result({"outputs": data}, lambda console: write_lines(console.file, lines))


def run_file(options: GenerateOptions, progress: Progress) -> Result:
    """Answer every line of a file; see ``answers``."""
    from t5edge.bundle.files import MANIFEST, sha256_of
    from t5edge.runtime.model import load
    from t5edge.tools.answers import answers_to, count_lines, read_prompts

    if options.text:
        raise UserError("prompts come from --file or from the command line, not both.")
    if options.assistant is not None:
        raise UserError("--file answers many prompts at once and takes no --assistant; leave it out.")
    if options.out is None:
        raise UserError("--file needs --out FILE for the answers.")
    source, out = Path(options.file or ""), Path(options.out)
    total = count_lines(source)
    model = load(options.bundle, options.target)
    model.require_decoder("text to generate")
    settings, skipped = options.settings, not options.keep_special_tokens
    run = {"bundle": sha256_of(Path(options.bundle) / MANIFEST), "settings": settings, "special_tokens": not skipped}
    run |= {"scores": True} if options.scores else {}
    with (
        answers_to(source, out, run, force=options.force) as answers,
        progress.stage(out.name, total, "prompts") as stage,
    ):
        if answers.done:
            progress.message(f"{answers.done} of {total} prompts are answered already; going on")
        stage.advance(answers.done)
        texts, asked = tee(read_prompts(source, answers.done))
        settings = {**settings, "skip_special_tokens": skipped, "return_scores": options.scores}
        found = model.stream_text(texts, batch_size=options.batch_size, first=answers.done, **settings)
        try:
            for number, (text, targets) in enumerate(zip(asked, found, strict=True), start=answers.done):
                answers.write(number, text, targets)
                stage.advance()
        except KeyboardInterrupt:
            progress.message(
                f"the answers so far are kept in {shown(out)}.partial; the same command goes on from there"
            )
            raise
    data = {"file": str(out), "answers": total, "resumed": answers.done}
    return Result(data, lambda console: console.print(f"{total} answers in {shown(out)}", highlight=False))


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
