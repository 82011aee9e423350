"""An encoder alone, ours against optimum's graph, in turn in one process, with one ONNX Runtime.

    python -m benchmarks.encoder --variant google-t5/t5-base --peer-python PEERS/bin/python --work FOLDER

optimum's encoder is what ``optimum-cli export onnx`` writes, opened as optimum opens it: with ONNX Runtime's default
options. ``optimum int8`` is the same after ``quantize_dynamic``, the int8 that optimum offers without calibration.
Ratios are taken within a round, the order turns from round to round; a turn begins after a rest and a second untimed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import t5edge
from benchmarks.checkpoints import save_checkpoint
from benchmarks.processes import run

PAUSE, TURN = 0.5, 1.0
"""Seconds of rest before a turn (threads of others spin for 0.2 s), of work before it is timed, and of timing."""
BASE = "t5edge fp32"
Encode = Callable[[np.ndarray], np.ndarray]


def prepare(variant: str, work: Path, peer_python: Path) -> None:
    """What is missing in the work folder: checkpoint, our bundles, optimum's graph and its int8 form."""
    from onnxruntime.quantization import quantize_dynamic

    checkpoint, optimum = work / "checkpoint", work / "optimum"
    if not checkpoint.exists():
        save_checkpoint(variant, checkpoint)
    for precision in ("fp32", "int8"):
        if not (work / precision).exists():
            options = {"task": "encode", "no_verify": True, "target": ("onnxruntime",)}
            t5edge.export(str(checkpoint), precision, out=work / precision, **options)
    if not optimum.exists():
        command = [str(peer_python.with_name("optimum-cli")), "export", "onnx", "--model", str(checkpoint)]
        run([*command, "--task", "text2text-generation", str(optimum)], work / "optimum.log", HF_HUB_OFFLINE="1")
    if not (work / "optimum-int8.onnx").exists():
        quantize_dynamic(optimum / "encoder_model.onnx", work / "optimum-int8.onnx")


def engines(work: Path) -> dict[str, Encode]:
    """Hidden states of ids int64 [1, tokens], by each."""
    import onnxruntime

    def ours(precision: str) -> Encode:
        return t5edge.load(work / precision).encode_ids

    def theirs(path: Path) -> Encode:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def encode(ids: np.ndarray) -> np.ndarray:
            found: np.ndarray = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
            return found

        return encode

    return {
        BASE: ours("fp32"),
        "t5edge int8": ours("int8"),
        "optimum fp32": theirs(work / "optimum" / "encoder_model.onnx"),
        "optimum int8": theirs(work / "optimum-int8.onnx"),
    }


def seconds(encode: Encode, ids: np.ndarray) -> float:
    """Median of a turn."""
    time.sleep(PAUSE)
    taken: list[float] = []
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + 2 * TURN:
        encode(ids)
        if now > begin + TURN:
            taken.append(time.perf_counter() - now)
    return statistics.median(taken)


def measure(given: dict[str, Encode], tokens: int, rounds: int, vocabulary: int) -> dict[str, list[float]]:
    """Seconds of each engine in each round."""
    ids = np.random.default_rng(0).integers(3, vocabulary, (1, tokens))
    exact = given[BASE](ids)
    for name, encode in given.items():
        error = float(np.linalg.norm(encode(ids) - exact) / np.linalg.norm(exact))
        print(f"{tokens} tokens, {name}: relative difference from {BASE} {error:.1e}")
        assert error < (0.5 if "int8" in name else 1e-4), name
    found: dict[str, list[float]] = {name: [] for name in given}
    for turn in range(rounds):
        names = list(given)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(seconds(given[name], ids))
    return found


def report(tokens: int, found: dict[str, list[float]]) -> None:
    load = os.getloadavg()[0]
    print(f"{tokens} tokens, load average {load:.1f}")
    for name, taken in found.items():
        ratios = [own / base for own, base in zip(taken, found[BASE], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        own, ratio = statistics.median(taken) * 1e3, statistics.median(ratios)
        print(f"  {name:14} {own:7.1f} ms   {ratio:.2f} ({spread}) x ours fp32")
    best = [min(pair) for pair in zip(found["optimum fp32"], found["optimum int8"], strict=True)]
    speedups = sorted(peer / own for peer, own in zip(best, found["t5edge int8"], strict=True))
    spread = f"{speedups[0]:.2f} to {speedups[-1]:.2f}"
    print(f"  t5edge int8 is {statistics.median(speedups):.2f} ({spread}) times as fast as the best of optimum's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="google-t5/t5-base")
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prepare-only", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    prepare(given.variant, given.work, given.peer_python)
    if given.prepare_only:
        return
    opened = engines(given.work)
    vocabulary = t5edge.load(given.work / "fp32").vocab_size
    results = {}
    for tokens in given.tokens:
        results[tokens] = measure(opened, tokens, given.rounds, vocabulary)
        report(tokens, results[tokens])
    (given.work / "encoder.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
