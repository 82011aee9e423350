"""Tokens that are copied, and long lists: a small correction model, trained here, grown to the shape of any T5 v1.0.

    python -m benchmarks.copying train --out SMALL
    python -m benchmarks.copying grow --small SMALL --variant google-t5/t5-base --out CHECKPOINT
    python -m benchmarks.copying lookup --checkpoint CHECKPOINT --work FOLDER
    python -m benchmarks.copying list --checkpoint CHECKPOINT --work FOLDER

The task: a sentence of made-up words, one in twenty of them misspelled; the answer is the sentence spelled right.
Growing adds layers, heads and units that compute zero: the answers stay those of the small model, the work is that of
the large one. ``lookup`` compares plain greedy search with prompt lookup in turn, on sentences of the task, and
while sampling from them at a temperature at which nothing is copied. ``list`` compares ``stream_text`` with
fixed batches of 16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS, FIRST_WORD = 100, 3
WRONG_SHARE = 0.05
SHAPE = {"d_model": 128, "d_kv": 64, "num_heads": 4, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2}


def sentences(count: int, shortest: int, longest: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Sources with misspelled words and targets without, both with the end token 1; no word comes twice."""
    rng = np.random.default_rng(seed)
    sources, targets = [], []
    for length in rng.integers(shortest, longest + 1, count):
        right = FIRST_WORD + rng.permutation(WORDS)[:length]
        wrong = rng.random(length) < WRONG_SHARE
        sources.append([*np.where(wrong, right + WORDS, right).tolist(), 1])
        targets.append([*right.tolist(), 1])
    return sources, targets


def padded(rows: list[list[int]], fill: int = 0) -> np.ndarray:
    """int64 [rows, longest]."""
    width = max(map(len, rows))
    return np.array([row + [fill] * (width - len(row)) for row in rows], np.int64)


def train(out: Path, steps: int, seed: int = 0) -> None:
    """Train from scratch on the CPU and write a checkpoint folder."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config = T5Config(
        vocab_size=FIRST_WORD + 2 * WORDS + 5,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        tie_word_embeddings=True,
        **SHAPE,
    )
    model = T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    model.train()
    longest = 8
    for step in range(steps):
        sources, targets = sentences(48, 2, longest, seed + step + 1)
        ids = torch.from_numpy(padded(sources))
        labels = torch.from_numpy(padded(targets, -100))
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels, use_cache=False).loss
        longest = min(64, longest + 1) if loss.item() < 0.3 else longest
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} longest {longest} loss {loss.item():.4f}", flush=True)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(out)


def grow(small: Path, variant: str, out: Path) -> None:
    """Write a checkpoint of ``variant``'s shape that answers as the small one does.

    The root mean square of a row padded with zeros is smaller by sqrt(d / D), so norms are scaled by it; the last norm
    is scaled back by what the logits' factor D ** -0.5 takes.
    """
    import torch
    from transformers import T5ForConditionalGeneration

    from benchmarks.checkpoints import save_checkpoint

    save_checkpoint(variant, out)
    little = T5ForConditionalGeneration.from_pretrained(small).state_dict()
    model = T5ForConditionalGeneration.from_pretrained(out)
    narrow, wide = SHAPE["d_model"], model.config.d_model
    with torch.no_grad():
        for name, value in model.state_dict().items():
            norm = "layer_norm" in name
            value.fill_(1.0 if norm else 0.0)
            if name in little:
                part = little[name] * ((narrow / wide) ** 0.5 if norm and "final" not in name else 1.0)
                value[tuple(slice(size) for size in part.shape)] = part
    for stack in (model.encoder, model.decoder):
        stack.final_layer_norm.weight.data[:narrow] *= (narrow / wide) ** 0.5 if stack is model.encoder else 1.0
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(out)


def as_text(row: list[int]) -> str:
    """A sentence as the synthetic tokenizer reads it."""
    return " ".join(f"w{token - FIRST_WORD}" for token in row[:-1])


def bundle(checkpoint: Path, precision: str, work: Path) -> Any:
    """The checkpoint exported, once, and opened."""
    import t5edge

    folder = work / f"{checkpoint.name}-{precision}"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        texts = work / "calibration.jsonl"
        pairs = zip(*(map(as_text, rows) for rows in sentences(64, 16, 64, seed=97)), strict=True)
        texts.write_text("".join(json.dumps({"source": left, "target": right}) + "\n" for left, right in pairs))
        command = [sys.executable, "cli.py", "export", "--variant", str(checkpoint), "--precision", precision]
        command += ["--calibration", str(texts)] if precision.startswith("int") else []
        subprocess.run([*command, "--target", "onnxruntime", "--no-verify", "--out", str(folder)], check=True)
    return t5edge.load(folder)


def lookup(checkpoint: Path, work: Path, precisions: list[str], rounds: int) -> list[dict[str, Any]]:
    """Plain search and prompt lookup in turn: seconds of each, median ratio, share of equal tokens."""
    sources, targets = sentences(rounds, 48, 64, seed=99)
    rows = []
    for precision in precisions:
        model = bundle(checkpoint, precision, work)
        for task, settings in {"copies": {}, "no copies": {"do_sample": True, "temperature": 1e4, "top_k": 0}}.items():
            settings = {"max_new_tokens": 80, **settings} if task == "copies" else {"max_new_tokens": 64, **settings}
            ratios, equal, right, steps = [], 0, 0, 0
            for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
                ids, seconds, found = np.array([source]), {}, {}
                kinds = {"plain": {}, "lookup": {"prompt_lookup_num_tokens": 10}}
                for kind in list(kinds)[:: 1 if number % 2 else -1]:
                    begin = time.perf_counter()
                    found[kind] = model.generate(ids, **settings, **kinds[kind])
                    seconds[kind] = time.perf_counter() - begin
                equal += np.array_equal(found["plain"], found["lookup"])
                right += found["plain"][0, 1:].tolist() == target
                steps += found["plain"].shape[1] - 1
                ratios.append(seconds["plain"] / seconds["lookup"])
            row = {"precision": precision, "task": task, "speed over plain": round(statistics.median(ratios), 3)}
            row |= {
                "spread": [round(value, 2) for value in (min(ratios), max(ratios))],
                "same tokens": f"{equal}/{rounds}",
            }
            rows.append(row | {"answers right": f"{right}/{rounds}", "tokens": steps})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def long_list(checkpoint: Path, work: Path, precisions: list[str], count: int) -> list[dict[str, Any]]:
    """``count`` sentences of 2 to 64 words: fixed batches of 16 in the order given, and ``stream_text``."""
    sources, _ = sentences(count, 2, 64, seed=98)
    texts, rows = list(map(as_text, sources)), list[dict[str, Any]]()
    for precision in precisions:
        model = bundle(checkpoint, precision, work)
        parts, seconds, found = (
            np.array_split(np.arange(count), 4),
            {"fixed": 0.0, "stream": 0.0},
            {"fixed": [], "stream": []},
        )
        for number, part in enumerate(parts):
            piece = [texts[index] for index in part]
            for kind in list(seconds)[:: 1 if number % 2 else -1]:
                begin = time.perf_counter()
                if kind == "stream":
                    found[kind] += [
                        answers[0] for answers in model.stream_text(piece, batch_size=16, max_new_tokens=80)
                    ]
                else:
                    for start in range(0, len(piece), 16):
                        found[kind] += model.generate_text(piece[start : start + 16], max_new_tokens=80)
                seconds[kind] += time.perf_counter() - begin
        equal = sum(left == right for left, right in zip(found["fixed"], found["stream"], strict=True))
        tokens = sum(len(answer.split()) + 1 for answer in found["stream"])
        row = {"precision": precision, "prompts": count, "same answers": equal, "tokens": tokens}
        row |= {kind: f"{tokens / value:.0f} tokens/s" for kind, value in seconds.items()}
        rows.append(row | {"ratio": round(seconds["fixed"] / seconds["stream"], 3)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "grow", "lookup", "list"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--variant", default="google-t5/t5-base")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8-weight"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--count", type=int, default=2000)
    given = parser.parse_args()
    if given.command == "train":
        train(given.out, given.steps)
    elif given.command == "grow":
        grow(given.small, given.variant, given.out)
    elif given.command == "lookup":
        lookup(given.checkpoint, given.work, given.precision, given.rounds)
    else:
        long_list(given.checkpoint, given.work, given.precision, given.count)


if __name__ == "__main__":
    main()
