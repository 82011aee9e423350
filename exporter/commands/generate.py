"""``t5edge generate``: text in, text out, from a bundle; loads neither torch nor transformers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from exporter.commands.result import Result
from exporter.errors import UserError
from exporter.options import GenerateOptions
from exporter.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def run(options: GenerateOptions, progress: Progress) -> Result:
    """Answer every prompt, in one batch."""
    from exporter.runtime.model import load

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
