"""One toolchain in its own process: reads JSON requests from standard input, answers each with one JSON line.

    python peer_worker.py ENGINE FOLDER THREADS     ENGINE: a key of ``ENGINES``
    {"input_ids": [[...]], "new_tokens": 64, "beams": 1} -> {"seconds": ..., "tokens": [[...]], "peak_mib": ...}
    {"input_ids": [[...]], "new_tokens": 0}              -> the same for the encoder alone: no tokens
    what an engine does not offer (its encoder, beams, batches) -> null seconds

Needs only its engine: run it with the python that has it. All generate exactly ``new_tokens`` tokens, by a minimum
length equal to the maximum.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Ids = list[list[int]]
START, END = 0, 1


@dataclass(frozen=True)
class Opened:
    """``generate`` (ids, new_tokens, beams, ngram); ``encode`` (ids) or None; ``settle``: runs until it is at speed.

    ``most_beams``, ``most_rows``: what it can search with, and for how many sentences at once.
    """

    generate: Callable[[Ids, int, int, int], Ids]
    encode: Callable[[Ids], object] | None = None
    settle: int = 0
    most_beams: float = math.inf
    most_rows: float = math.inf

    def offers(self, request: dict[str, Any]) -> bool:
        if not request["new_tokens"]:
            return self.encode is not None
        return request["beams"] <= self.most_beams and len(request["input_ids"]) <= self.most_rows


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


def open_openvino(folder: str, threads: int) -> Opened:
    """The bundle's own graphs, in float32 where they say so; greedy search.

    Two requests take turns, so that the cache that one has written is read by the other without a copy.
    """
    import numpy as np
    import openvino

    core, settings = openvino.Core(), {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    encoder, decoder = (
        core.compile_model(f"{folder}/{graph}.onnx", "CPU", settings) for graph in ("encoder", "decoder")
    )
    encoding = encoder.create_infer_request()
    turns = [decoder.create_infer_request() for _ in range(2)]
    present = {name.replace("present", "past_key_values"): name for name in _names(decoder) if "present" in name}
    _, heads, _, width = (axis.get_max_length() for axis in decoder.input(next(iter(present))).partial_shape)

    def encode(ids: Ids) -> None:
        array = np.asarray(ids, np.int64)
        encoding.infer({"input_ids": array, "attention_mask": np.ones_like(array)})

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        encode(ids)
        for request in turns:
            request.set_tensor("encoder_attention_mask", openvino.Tensor(np.ones_like(np.asarray(ids, np.int64))))
            for name in _names(encoder):
                if "present" in name:
                    request.set_tensor(name.replace("present", "past_key_values"), encoding.get_tensor(name))
        empty = openvino.Tensor(np.zeros((len(ids), heads, 0, width), np.float32))
        found = np.full((len(ids), new_tokens + 1), START, np.int64)
        for place in range(new_tokens):
            request, before = turns[place % 2], turns[1 - place % 2]
            for past, name in present.items():
                request.set_tensor(past, before.get_tensor(name) if place else empty)
            request.set_tensor("input_ids", openvino.Tensor(found[:, place : place + 1].copy()))
            request.infer()
            found[:, place + 1] = _best(request.get_tensor("logits").data[:, -1], found[:, : place + 1], ngram)
        return found[:, 1:].tolist()

    return Opened(generate, encode, most_beams=1)


def _names(compiled: Any) -> list[str]:
    return [port.any_name for port in compiled.outputs]


def _best(logits: Any, before: Any, ngram: int) -> Any:
    """The likeliest tokens [rows] of [rows, vocab], the end token and, with ``ngram`` 1, those before left out."""
    scores = logits.copy()
    scores[:, END] = -math.inf
    if ngram == 1:
        for row, tokens in zip(scores, before, strict=True):
            row[tokens] = -math.inf
    return scores.argmax(axis=1)


def open_llama(file: str, threads: int) -> Opened:
    """llama.cpp through the C functions that llama-cpp-python hands on; one sentence, greedy search."""
    import numpy as np
    from llama_cpp import llama_cpp as llama

    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, 512, 512
    settings.n_threads = settings.n_threads_batch = threads
    if "q8" not in file:
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32; float16 otherwise
    context = llama.llama_init_from_model(model, settings)
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def run(function: Callable[[Any, Any], int], tokens: list[int]) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        if function(context, llama.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError(f"{function.__name__} failed")

    def encode(ids: Ids) -> None:
        run(llama.llama_encode, ids[0])

    def generate(ids: Ids, new_tokens: int, beams: int, ngram: int) -> Ids:
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        encode(ids)
        found = [START]
        for _ in range(new_tokens):
            run(llama.llama_decode, found[-1:])
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (size,))
            found.append(int(_best(logits[None], [found], ngram)[0]))
        return [found[1:]]

    return Opened(generate, encode, most_beams=1, most_rows=1)


ENGINES: dict[str, Callable[[str, int], Opened]] = {
    "t5edge": open_t5edge,
    "transformers": open_transformers,
    "transformers-compiled": open_compiled,
    "optimum": open_optimum,
    "ctranslate2": open_ctranslate2,
    "ctranslate2-int8": lambda folder, threads: open_ctranslate2(folder, threads, "int8"),
    "openvino": open_openvino,
    "llama": open_llama,
}


def answer(opened: Opened, request: dict[str, Any]) -> dict[str, Any]:
    ids, new_tokens, tokens, seconds = request["input_ids"], request["new_tokens"], [], None
    if opened.offers(request):
        begin = time.perf_counter()
        if new_tokens:
            tokens = opened.generate(ids, new_tokens, request["beams"], request.get("ngram", 0))
        elif opened.encode is not None:
            opened.encode(ids)
        seconds = time.perf_counter() - begin
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
