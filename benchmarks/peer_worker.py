"""One toolchain in its own process: reads JSON requests from standard input, answers each with one JSON line.

    python peer_worker.py ENGINE FOLDER THREADS     ENGINE: t5edge, transformers, optimum, ctranslate2, ctranslate2-int8
    {"input_ids": [[...]], "new_tokens": 64, "beams": 1} -> {"seconds": ..., "tokens": [[...]], "peak_mib": ...}

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
from typing import Any

Ids = list[list[int]]
Generate = Callable[[Ids, int, int, int], Ids]


def open_t5edge(folder: str, threads: int) -> Generate:
    import numpy as np

    import exporter

    model = exporter.load(folder, threads=threads)

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "no_repeat_ngram_size": ngram}
        return model.generate(np.asarray(ids), num_beams=beams, **lengths)[:, 1:].tolist()

    return generate


def open_transformers(folder: str, threads: int) -> Generate:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    return _by_transformers(AutoModelForSeq2SeqLM.from_pretrained(folder).eval())


def open_optimum(folder: str, threads: int) -> Generate:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return _by_transformers(ORTModelForSeq2SeqLM.from_pretrained(folder, use_merged=True, session_options=options))


def _by_transformers(model: Any) -> Generate:
    import torch

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        tensor = torch.tensor(ids)
        lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "no_repeat_ngram_size": ngram}
        settings = {"num_beams": beams, "do_sample": False, **lengths}
        with torch.inference_mode():
            return model.generate(tensor, attention_mask=torch.ones_like(tensor), **settings)[:, 1:].tolist()

    return generate


def open_ctranslate2(folder: str, threads: int, compute: str = "float32") -> Generate:
    """Tokens of the synthetic vocabulary stand for their ids: see ``benchmarks.checkpoints``."""
    import ctranslate2

    translator = ctranslate2.Translator(folder, compute_type=compute, intra_threads=threads, inter_threads=1)
    special = ["<pad>", "</s>", "<unk>"]

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        words = [[special[i] if i < len(special) else f"▁w{i - len(special)}" for i in row] for row in ids]
        lengths = {"max_decoding_length": new_tokens, "min_decoding_length": new_tokens, "no_repeat_ngram_size": ngram}
        results = translator.translate_batch(words, beam_size=beams, max_batch_size=0, **lengths)
        return [[number(token) for token in result.hypotheses[0]] for result in results]

    def number(token: str) -> int:
        return special.index(token) if token in special else int(token.removeprefix("▁w")) + len(special)

    return generate


ENGINES: dict[str, Callable[[str, int], Generate]] = {
    "t5edge": open_t5edge,
    "transformers": open_transformers,
    "optimum": open_optimum,
    "ctranslate2": open_ctranslate2,
    "ctranslate2-int8": lambda folder, threads: open_ctranslate2(folder, threads, "int8"),
}


def main() -> None:
    engine, folder, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not print answers
    generate = ENGINES[engine](folder, threads)
    print(json.dumps({"ready": engine}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.perf_counter()
        tokens = generate(request["input_ids"], request["new_tokens"], request["beams"], request.get("ngram", 0))
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_mib": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
