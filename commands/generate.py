"""``t5edge generate``: text in, text out, from a bundle; loads neither torch nor transformers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from t5edge.commands.result import Result
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class GenerateOptions:
    """What ``generate`` takes. Unset flags leave the bundle's generation_config.json in force."""

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

    @property
    def settings(self) -> dict[str, Any]:
        """The generation options that were given."""
        names = [entry.name for entry in fields(self) if entry.name not in ("bundle", "text", "target")]
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None and value is not False}


def run(options: GenerateOptions, progress: Progress) -> Result:
    """Answer every prompt, in one batch."""
    from t5edge.runtime.model import load

    model = load(options.bundle, options.target)
    texts = _texts(options)
    answers = model.generate_text(texts, **options.settings)
    per_text = len(answers) // len(texts)
    data = [
        {"source": text, "target": answers[index * per_text : (index + 1) * per_text]}
        if per_text > 1
        else {"source": text, "target": answers[index]}
        for index, text in enumerate(texts)
    ]

    def show(console: Console) -> None:
        for answer in answers:
            console.print(answer, markup=False, highlight=False, soft_wrap=True)

    return Result({"outputs": data}, show)


def _texts(options: GenerateOptions) -> list[str]:
    if options.text and options.text != ("-",):
        return list(options.text)
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("there is no prompt; pass texts as arguments or one per line on standard input.")
    return lines
