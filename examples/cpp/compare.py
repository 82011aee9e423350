"""The C++ program beside Python: the same tokens, and the ratio of their times, in turn; loading is left out.

    python compare.py PROGRAM BUNDLE [--batch N] [--count N] [--rounds N]

The sources are t5-demo's held-out prompts, or random ids where the bundle has no tokenizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

import t5edge

PROMPTS = Path(__file__).parents[2] / "exporter/data/t5-demo/heldout.jsonl"


def sources(model: t5edge.BundleModel, count: int) -> list[list[int]]:
    if (Path(model.folder) / "tokenizer.json").is_file():
        lines = PROMPTS.read_text(encoding="utf-8").splitlines()[:count]
        return model.tokenizer.ids([json.loads(line)["source"] for line in lines])
    random = np.random.default_rng(0)
    return [[*random.integers(3, model.vocab_size, random.integers(16, 64)).tolist(), 1] for _ in range(count)]


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, int64 [batch, longest], padded on the right."""
    mask = np.array([[at < len(row) for at in range(max(map(len, rows)))] for row in rows])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64)


def in_python(model: t5edge.BundleModel, rows: list[list[int]], batch: int, eos: int) -> tuple[float, list[list[int]]]:
    began, answers = time.perf_counter(), []
    for first in range(0, len(rows), batch):
        made = model.generate(*padded(rows[first : first + batch]))[:, 1:].tolist()
        answers += [row[: row.index(eos) + 1] if eos in row else row for row in made]
    return time.perf_counter() - began, answers


def in_cpp(program: str, folder: str, rows: list[list[int]], batch: int) -> tuple[float, list[list[int]]]:
    text = "".join(f"{' '.join(map(str, row))}\n" for row in rows)
    command = [program, folder, "--batch", str(batch), "--stats"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    answers = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    return json.loads(done.stderr)["seconds"], answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("bundle")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    model = t5edge.load(given.bundle)
    rows, eos = sources(model, given.count), model.architecture.eos_token_id
    ratios, seconds = [], []
    for _ in range(given.rounds):
        python, ours = in_python(model, rows, given.batch, eos)
        cpp, theirs = in_cpp(given.program, given.bundle, rows, given.batch)
        ratios.append(cpp / python)
        seconds.append((python, cpp))
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    python, cpp = map(statistics.median, zip(*seconds, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"same tokens: {same} of {len(rows)}; Python {python:.2f} s, C++ {cpp:.2f} s, ", end="")
    print(f"ratio {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
