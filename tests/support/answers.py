"""t5-demo's held-out prompts, and our answers to them as clients in other languages give theirs."""

from __future__ import annotations

import json
from pathlib import Path

import t5edge

HELD_OUT = Path(__file__).parents[2] / "exporter/data/t5-demo/heldout.jsonl"
PROMPTS: list[str] = [json.loads(line)["source"] for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
EOS = 1


def our_answers(folder: Path, batch: int) -> list[list[int]]:
    """Of each prompt the ids behind the start token, up to the end token; ``batch`` prompts at a time."""
    model, answers = t5edge.load(folder), []
    rows = model.tokenizer.ids(PROMPTS)
    for first in range(0, len(rows), batch):
        made = model.generate(*model.tokenizer.pad(rows[first : first + batch]))[:, 1:].tolist()
        answers += [row[: row.index(EOS) + 1] for row in made]
    return answers
