"""Exact match of a t5-demo folder on held-out numbers, per direction and language.

    python evaluate.py FOLDER --count 2000 --seed 0 --out results.json

Greedy decoding: a checkpoint with transformers, in fp32, from its own files (so from its fp16-rounded weights); a
bundle of t5edge with its own runtime.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import KINDS, LANGS, held_out, prompt, target

MAX_NEW_TOKENS = 64
DECODING = {False: "greedy, fp32, fp16-rounded weights", True: "greedy, t5edge bundle"}
Answer = Callable[[list[str]], list[str]]


def open_checkpoint(folder: Path) -> Answer:
    """A checkpoint behind transformers."""
    import torch
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(prompts: list[str]) -> list[str]:
        inputs = tokenizer(prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MAX_NEW_TOKENS)
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in out]

    return answer


def is_bundle(folder: Path) -> bool:
    return (folder / "bundle.json").is_file()


def open_bundle(folder: Path) -> Answer:
    """A bundle on ONNX Runtime."""
    import t5edge

    model = t5edge.load(folder)
    return lambda prompts: model.generate_text(prompts, max_new_tokens=MAX_NEW_TOKENS)


def answers(answer: Answer, prompts: list[str], batch: int) -> list[str]:
    """The greedy answers to ``prompts``, in their order, computed ``batch`` prompts at a time."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for i, text in zip(rows, answer([prompts[i] for i in rows]), strict=True):
            texts[i] = text
    return texts


def score(kind: str, lang: str, numbers: list[int], got: list[str]) -> dict[str, Any]:
    """Exact matches of ``got``, the answers about ``numbers``, and the first wrong ones."""
    wrong = [(n, text) for n, text in zip(numbers, got, strict=True) if text != target(kind, lang, n)]
    examples = [{"source": prompt(kind, lang, n), "target": target(kind, lang, n), "answer": t} for n, t in wrong[:5]]
    right = len(numbers) - len(wrong)
    return {"exact": right, "count": len(numbers), "percent": 100.0 * right / len(numbers), "wrong": examples}


def evaluate(folder: Path, numbers: list[int], batch: int) -> dict[str, dict[str, Any]]:
    """The scores of the checkpoint or bundle in ``folder`` over ``numbers``, keyed by "kind lang"."""
    answer = open_bundle(folder) if is_bundle(folder) else open_checkpoint(folder)
    results = {}
    for kind in KINDS:
        for lang in LANGS:
            got = answers(answer, [prompt(kind, lang, n) for n in numbers], batch)
            results[f"{kind} {lang}"] = result = score(kind, lang, numbers, got)
            print(f"{kind} {lang}: {result['exact']}/{result['count']} = {result['percent']:.2f} %")
    return results


def main() -> None:
    """Read the command line, evaluate, print and (with --out) write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoint or bundle")
    parser.add_argument("--count", type=int, default=2000, help="held-out numbers, the same for all four")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of the held-out numbers")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--below", type=int, default=0, help="score all numbers below this instead")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    begin = time.monotonic()
    numbers = list(range(args.below)) if args.below else held_out(args.count, args.seed)
    results = evaluate(args.folder, numbers, args.batch)
    print(f"seconds {time.monotonic() - begin:.0f}")
    if args.out is not None:
        drawn = f"all below {args.below}" if args.below else f"{len(numbers)} held out, seed {args.seed}"
        report = {"numbers": drawn, "decoding": DECODING[is_bundle(args.folder)], "results": results}
        args.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
