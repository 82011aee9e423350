"""Train t5-demo from scratch on a CPU and write the checkpoint folder.

    python train.py --work WORK --out FOLDER --steps 5500 --seed 0 --bf16

Training state goes to WORK/state.pt at every ``--save-every`` steps; the same command resumes from it.  A
resumed run draws the same examples as an uninterrupted one; with another ``--steps`` it goes on along that
schedule.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from data import KINDS, training_pairs
from package import PAD, build_model, build_tokenizer, write_folder
from tokenizers import Tokenizer
from transformers import T5ForConditionalGeneration

CHUNK_STEPS = 50
TOKENIZER_CORPUS = 20_000

Batch = tuple[torch.Tensor, torch.Tensor]


def corpus(seed: int) -> list[str]:
    """Prompts and targets of both kinds for training the tokenizer."""
    return [text for kind in KINDS for pair in training_pairs(kind, TOKENIZER_CORPUS, seed) for text in pair]


def pad(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Rows of token ids as an int64 tensor [len(rows), longest row], filled up on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def kind_batches(tokenizer: Tokenizer, kind: str, size: int, seed: int) -> list[Batch]:
    """CHUNK_STEPS batches (source ids, labels with -100 as padding) of one kind, of similar lengths each."""
    pairs = training_pairs(kind, size * CHUNK_STEPS, seed)
    sources = [e.ids for e in tokenizer.encode_batch([s for s, _ in pairs])]
    targets = [e.ids for e in tokenizer.encode_batch([t for _, t in pairs])]
    rng = random.Random(seed)
    order = sorted(range(len(pairs)), key=lambda i: (len(sources[i]) + len(targets[i]), rng.random()))
    batches = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batches.append((pad([sources[i] for i in rows], PAD), pad([targets[i] for i in rows], -100)))
    rng.shuffle(batches)
    return batches


def steps_from(tokenizer: Tokenizer, sizes: dict[str, int], seed: int, first: int) -> Iterator[list[Batch]]:
    """For each optimizer step from ``first`` (a multiple of CHUNK_STEPS) on, one batch per kind."""
    chunk = first // CHUNK_STEPS
    while True:
        base = (seed * 1_000_003 + chunk + 1) * len(KINDS)
        columns = [kind_batches(tokenizer, kind, sizes[kind], base + i) for i, kind in enumerate(KINDS)]
        yield from (list(step) for step in zip(*columns, strict=True))
        chunk += 1


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up for ``warmup`` steps, then a cosine to zero at ``total``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def batch_loss(model: T5ForConditionalGeneration, batch: Batch, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy per target token (a scalar, in nats)."""
    source, labels = batch
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        out = model(input_ids=source, attention_mask=(source != PAD).long(), labels=labels, use_cache=False)
    loss: torch.Tensor = out.loss
    return loss


def save_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the training state, replacing the earlier one atomically."""
    temp = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temp)
    temp.replace(path)


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the training state in ``path``, if there is one, and return its step (0 without one)."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train(args: argparse.Namespace) -> None:
    """Run the training that the arguments describe."""
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(corpus(0))
    model = build_model(tokenizer.get_vocab_size())
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    path = args.work / "state.pt"
    step = load_state(path, model, optimizer)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, vocabulary {tokenizer.get_vocab_size()}")
    sizes = {"spell": args.batch_spell, "read": args.batch_read}
    stream = steps_from(tokenizer, sizes, args.seed, step)
    model.train()
    begin, sums = time.monotonic(), [0.0] * len(KINDS)
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        for i, batch in enumerate(next(stream)):
            loss = batch_loss(model, batch, args.bf16)
            loss.backward()
            sums[i] += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % args.log_every == 0:
            means = " ".join(f"{k} {s / args.log_every:.5f}" for k, s in zip(KINDS, sums, strict=True))
            print(f"step {step} {means} seconds {time.monotonic() - begin:.0f}", flush=True)
            sums = [0.0] * len(KINDS)
        if step % args.save_every == 0 or step == args.steps:
            save_state(path, model, optimizer, step)
            write_folder(args.out, model, tokenizer)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--batch-spell", type=int, default=48)
    parser.add_argument("--batch-read", type=int, default=96)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (weights stay fp32)")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=1000, help=f"a multiple of {CHUNK_STEPS}")
    args = parser.parse_args()
    if args.save_every % CHUNK_STEPS:
        parser.error(f"--save-every must be a multiple of {CHUNK_STEPS}")
    train(args)


if __name__ == "__main__":
    main()
