"""Tokens that are copied, and long lists: a small correction model, trained here, grown to the shape of any T5 v1.0.

    python -m benchmarks.copying train --out SMALL
    python -m benchmarks.copying grow --small SMALL --variant google-t5/t5-base --out CHECKPOINT
    python -m benchmarks.copying lookup --checkpoint CHECKPOINT --work FOLDER
    python -m benchmarks.copying assistant --checkpoint CHECKPOINT --assistant OTHER --work FOLDER
    python -m benchmarks.copying list --checkpoint CHECKPOINT --work FOLDER

The task: a sentence of made-up words, one in twenty of them misspelled; the answer is the sentence spelled right.
Growing adds layers, heads and units that compute zero: the answers stay those of the small model, the work is that of
the large one. ``lookup`` compares plain greedy search with prompt lookup in turn, on sentences of the task, and
while sampling from them at a temperature at which nothing is copied. ``assistant`` compares it with drafts of a smaller
shape of the same model, grown with ``--noise`` so that it errs as a weaker one would. ``list`` compares ``stream_text``
with fixed batches of 16.
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


def grow(small: Path, variant: str, out: Path, noise: float = 0.0) -> None:
    """Write a checkpoint of ``variant``'s shape that answers as the small one does, but for ``noise``.

    That is added to every weight, in units of its matrix's standard deviation.

    The root mean square of a row padded with zeros is smaller by sqrt(d / D), so norms are scaled by it; the last norm
    is scaled back by what the logits' factor D ** -0.5 takes.
    """
    import torch
    from transformers import T5ForConditionalGeneration

    from benchmarks.checkpoints import save_checkpoint

    save_checkpoint(variant, out)
    little = T5ForConditionalGeneration.from_pretrained(small).state_dict()
    model = T5ForConditionalGeneration.from_pretrained(out)
    torch.manual_seed(0)
    little = {name: value + noise * value.std() * torch.randn_like(value) for name, value in little.items()}
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


def lookup(checkpoint: Path, work: Path, precisions: list[str], rounds: int) -> None:
    """Plain search and prompt lookup in turn."""
    tasks = {
        "copies": {"max_new_tokens": 80},
        "no copies": {"max_new_tokens": 64, "do_sample": True, "temperature": 1e4, "top_k": 0},
    }
    for precision in precisions:
        model = bundle(checkpoint, precision, work)
        for task, settings in tasks.items():
            row = {"precision": precision, "task": task}
            show(row | in_turn(model, settings, {"prompt_lookup_num_tokens": 10}, rounds))


def assistant(checkpoint: Path, other: Path, work: Path, precisions: list[str], drafts: str, rounds: int) -> None:
    """Plain search and drafts of a smaller bundle in turn, greedy and sampling; sampled tokens are others by design."""
    small = bundle(other, drafts, work)
    tasks = {"greedy": {}, "sampling": {"do_sample": True, "seed": 0}}
    for precision in precisions:
        model = bundle(checkpoint, precision, work)
        for task, settings in tasks.items():
            row = {"precision": precision, "drafts": f"{other.name} {drafts}", "task": task}
            show(row | in_turn(model, {"max_new_tokens": 80, **settings}, {"assistant": small}, rounds))


def show(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def in_turn(model: Any, settings: dict[str, Any], drafting: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Sentences answered with and without ``drafting``, the order turning; a first one of each is not measured.

    Gives the median ratio of seconds and its spread, shares of equal tokens and right answers, and tokens per pass.
    """
    sources, targets = sentences(rounds + 1, 48, 64, seed=99)
    kinds, passes = {"plain": {}, "drafted": drafting}, counted(model.step_model)
    ratios, same, right, tokens, steps = [], 0, dict.fromkeys(kinds, 0), 0, 0
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        seconds, found = {}, {}
        for kind in list(kinds)[:: 1 if number % 2 else -1]:
            passes.clear()
            begin = time.perf_counter()
            found[kind] = model.generate(np.array([source]), **settings, **kinds[kind])[0, 1:].tolist()
            seconds[kind] = time.perf_counter() - begin
            steps += len(passes) if number and kind == "drafted" else 0
        if number:
            ratios.append(seconds["plain"] / seconds["drafted"])
            same += found["plain"] == found["drafted"]
            right = {kind: right[kind] + (found[kind] == target) for kind in kinds}
            tokens += len(found["drafted"])
    return {
        "speed over plain": round(statistics.median(ratios), 3),
        "spread": [round(value, 2) for value in (min(ratios), max(ratios))],
        "same tokens": f"{same}/{rounds}",
        "answers right": {kind: f"{count}/{rounds}" for kind, count in right.items()},
        "tokens per pass": round(tokens / steps, 2),
    }


def counted(step_model: Any) -> list[int]:
    """A list that grows by the positions of every pass that the model runs from now on."""
    passes, run = list[int](), type(step_model).step

    def step(state: Any, tokens: np.ndarray) -> np.ndarray:
        passes.append(tokens.shape[1])
        return run(step_model, state, tokens)

    step_model.step = step
    return passes


def long_list(checkpoint: Path, work: Path, precisions: list[str], count: int) -> None:
    """``count`` sentences of 2 to 64 words: fixed batches of 16 in the order given, and ``stream_text``."""
    sources, _ = sentences(count, 2, 64, seed=98)
    texts = list(map(as_text, sources))
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
        show(row | {"ratio": round(seconds["fixed"] / seconds["stream"], 3)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "grow", "lookup", "assistant", "list"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--variant", default="google-t5/t5-base")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8-weight"])
    parser.add_argument("--noise", type=float, default=0.0, help="grow: standard deviations added to every weight")
    parser.add_argument("--assistant", type=Path, help="the checkpoint that drafts")
    parser.add_argument("--drafts", default="int8-weight", help="its precision")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--count", type=int, default=2000)
    given = parser.parse_args()
    if given.command == "train":
        train(given.out, given.steps)
    elif given.command == "grow":
        grow(given.small, given.variant, given.out, given.noise)
    elif given.command == "lookup":
        lookup(given.checkpoint, given.work, given.precision, given.rounds)
    elif given.command == "assistant":
        assistant(given.checkpoint, given.assistant, given.work, given.precision, given.drafts, given.rounds)
    else:
        long_list(given.checkpoint, given.work, given.precision, given.count)


if __name__ == "__main__":
    main()
