"""One toolchain in its own process: reads JSON requests from standard input, answers each with one JSON line.

    python peer_worker.py ENGINE FOLDER THREADS     ENGINE: a key of ``ENGINES``
    {"input_ids": [[...]], "new_tokens": 64, "beams": 1} -> {"seconds": ..., "tokens": [[...]], "peak_mib": ...}
    {"input_ids": [[...]], "new_tokens": 0}              -> the same for the encoder alone: no tokens; null seconds
                                                            where the engine does not offer its encoder

Needs only its engine: run it with the python that has it. All generate exactly ``new_tokens`` tokens, by a minimum
length equal to the maximum.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Ids = list[list[int]]
START = 0


@dataclass(frozen=True)
class Opened:
    """``generate`` (ids, new_tokens, beams, ngram); ``encode`` (ids) or None; ``settle``: runs until it is at speed."""

    generate: Callable[[Ids, int, int, int], Ids]
    encode: Callable[[Ids], object] | None = None
    settle: int = 0


def open_t5edge(folder: str, threads: int) -> Opened:
    import numpy as np

    import t5edge

    model = t5edge.load(folder, threads=threads)

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "no_repeat_ngram_size": ngram}
        return model.generate(np.asarray(ids), num_beams=beams, **lengths)[:, 1:].tolist()

    def encode(ids: Ids) -> object:
        return model.step_model.encode(np.asarray(ids), np.ones_like(ids))

    return Opened(generate, encode)


def open_transformers(folder: str, threads: int) -> Opened:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    return _by_transformers(AutoModelForSeq2SeqLM.from_pretrained(folder).eval())


def open_compiled(folder: str, threads: int) -> Opened:
    """torch.compile with a cache of static length, as transformers documents it; every shape is compiled anew."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    model.forward = torch.compile(model.forward, dynamic=False)
    return Opened(_by_transformers(model, cache_implementation="static").generate, settle=3)


def open_optimum(folder: str, threads: int) -> Opened:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return _by_transformers(ORTModelForSeq2SeqLM.from_pretrained(folder, use_merged=True, session_options=options))


def _by_transformers(model: Any, **settings: Any) -> Opened:
    import torch

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        tensor = torch.tensor(ids)
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "no_repeat_ngram_size": ngram}
        with torch.inference_mode():
            rows = model.generate(
                tensor, attention_mask=torch.ones_like(tensor), num_beams=beams, do_sample=False, **lengths, **settings
            )
        return rows[:, 1:].tolist()

    def encode(ids: Ids) -> object:
        tensor = torch.tensor(ids)
        with torch.inference_mode():
            return model.get_encoder()(input_ids=tensor, attention_mask=torch.ones_like(tensor))

    return Opened(generate, encode)


def open_ctranslate2(folder: str, threads: int, compute: str = "float32") -> Opened:
    """Tokens of the synthetic vocabulary stand for their ids: see ``benchmarks.checkpoints``.

    Its n-grams leave the start token out; where no token may come twice it is barred by name, as it is in the others.
    """
    import ctranslate2

    translator = ctranslate2.Translator(folder, compute_type=compute, intra_threads=threads, inter_threads=1)
    special = ["<pad>", "</s>", "<unk>"]

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        words = [[special[i] if i < len(special) else f"▁w{i - len(special)}" for i in row] for row in ids]
        lengths = {"max_decoding_length": new_tokens, "min_decoding_length": new_tokens, "no_repeat_ngram_size": ngram}
        barred = {"suppress_sequences": [[special[START]]]} if ngram == 1 else {}
        results = translator.translate_batch(words, beam_size=beams, max_batch_size=0, **lengths, **barred)
        return [[number(token) for token in result.hypotheses[0]] for result in results]

    def number(token: str) -> int:
        return special.index(token) if token in special else int(token.removeprefix("▁w")) + len(special)

    return Opened(generate)


ENGINES: dict[str, Callable[[str, int], Opened]] = {
    "t5edge": open_t5edge,
    "transformers": open_transformers,
    "transformers-compiled": open_compiled,
    "optimum": open_optimum,
    "ctranslate2": open_ctranslate2,
    "ctranslate2-int8": lambda folder, threads: open_ctranslate2(folder, threads, "int8"),
}


def answer(opened: Opened, request: dict[str, Any]) -> dict[str, Any]:
    ids, new_tokens, tokens = request["input_ids"], request["new_tokens"], []
    begin = time.perf_counter()
    if new_tokens:
        tokens = opened.generate(ids, new_tokens, request["beams"], request.get("ngram", 0))
    elif opened.encode is not None:
        opened.encode(ids)
    seconds = time.perf_counter() - begin if new_tokens or opened.encode is not None else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "tokens": tokens, "peak_mib": peak}


def main() -> None:
    engine, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not print answers
    opened = ENGINES[engine](folder, threads)
    print(json.dumps({"ready": engine, "settle": opened.settle}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(opened, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
