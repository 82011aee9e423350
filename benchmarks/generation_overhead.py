"""Milliseconds per token that the generation loop itself takes; the model is a stub with constant logits.

    python benchmarks/generation_overhead.py [--vocab 32128] [--steps 200] [--repeats 5]

Prints the fastest of the repeats; the others are slower for reasons outside this program.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.search import run_search
from t5edge.runtime.generation.step import Scores, Tokens


class ConstantModel:
    """``StepModel`` whose state is the logits, float32 [rows, 1, vocab], that every step returns."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> Scores:
        random = np.random.default_rng(0)
        logits: Scores = 3 * random.standard_normal((len(input_ids) * copies, 1, self.vocab), np.float32)
        logits[..., 1] = -30
        return logits

    def step(self, state: Scores, tokens: Tokens) -> Scores:
        return state

    def reorder(self, state: Scores, rows: Tokens) -> None:
        pass


def milliseconds_per_step(options: GenerationOptions, batch: int, vocab: int, repeats: int) -> float:
    """Fastest of ``repeats`` runs of ``total_length - 1`` steps."""
    model, fastest = ConstantModel(vocab), float("inf")
    input_ids = np.ones((batch, 1), np.int64)
    for _ in range(repeats):
        start = time.perf_counter()
        run_search(model, input_ids, input_ids, options)
        fastest = min(fastest, time.perf_counter() - start)
    return 1000 * fastest / (options.total_length - 1)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--vocab", type=int, default=32128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    steps = flags.steps
    cases = {
        "greedy": GenerationOptions(max_new_tokens=steps),
        "greedy, repetition_penalty": GenerationOptions(max_new_tokens=steps, repetition_penalty=1.2),
        "greedy, no_repeat_ngram_size": GenerationOptions(max_new_tokens=steps, no_repeat_ngram_size=3),
        "sampling, top_k 50": GenerationOptions(max_new_tokens=steps, do_sample=True),
        "sampling, top_p 0.9": GenerationOptions(max_new_tokens=steps, do_sample=True, top_k=0, top_p=0.9),
        "sampling, unfiltered": GenerationOptions(max_new_tokens=steps, do_sample=True, top_k=0),
        "beams 4": GenerationOptions(max_new_tokens=steps, num_beams=4),
        "beams 4, no_repeat_ngram_size": GenerationOptions(max_new_tokens=steps, num_beams=4, no_repeat_ngram_size=3),
        "beams 4, sampling": GenerationOptions(max_new_tokens=steps, num_beams=4, do_sample=True),
    }
    print(f"{'ms per step, vocabulary ' + str(flags.vocab):40}{'batch 1':>10}{'batch 8':>10}")
    for name, options in cases.items():
        columns = (milliseconds_per_step(options, batch, flags.vocab, flags.repeats) for batch in (1, 8))
        print(f"{name:40}" + "".join(f"{column:10.3f}" for column in columns))


if __name__ == "__main__":
    main()
