"""Tokens that are copied: a small correction model, trained here, with and without prompt lookup.

    python -m benchmarks.copying train --out CHECKPOINT
    python -m benchmarks.copying run --checkpoint CHECKPOINT --work FOLDER

The task: a "sentence" of words, one in twenty of them misspelled; the answer is the sentence spelled right. Words are
ids, so that no tokenizer is needed. The second command exports the checkpoint, and compares plain greedy search with
prompt lookup in turn: on sentences of the task, and on random weights of the same shape, whose answers copy nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

WORDS, FIRST_WORD = 100, 3
WRONG_SHARE = 0.05
SHAPE = {"d_model": 128, "d_kv": 64, "num_heads": 4, "d_ff": 256, "num_layers": 2, "num_decoder_layers": 2}


def sentences(count: int, shortest: int, longest: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Sources with misspelled words and targets without, both with the end token 1."""
    rng = np.random.default_rng(seed)
    sources, targets = [], []
    for length in rng.integers(shortest, longest + 1, count):
        right = rng.integers(FIRST_WORD, FIRST_WORD + WORDS, length)
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
        sources, targets = sentences(48, max(2, longest // 2), longest, seed + step + 1)
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


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
