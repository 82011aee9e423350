"""The same generation by ours, transformers, optimum-onnx and CTranslate2, in turn, each in its own process.

    python -m benchmarks.peers --variant google-t5/t5-base --peer-python PEERS/bin/python --work FOLDER

Prepares what is missing in the work folder (checkpoint, bundles, optimum's export, CTranslate2's model), opens every
engine, warms each up, then measures in rounds: one generation by each engine per round. Ratios are taken within a round
and their median reported, so that noise that lasts longer than a round cancels. float32 engines must agree
token for token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import save_checkpoint
from benchmarks.processes import run

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
WORKER = Path(__file__).with_name("peer_worker.py")
BASE = "t5edge fp32"


PAUSE = 0.5
"""Seconds before each turn: OpenMP's threads spin for 0.2 s after their work, on the cores of the next engine."""
CHECK = {"new_tokens": 8, "ngram": 1}
"""The warm-up, by whose tokens the engines are compared: no token twice, because random weights like to repeat one."""


@dataclass(frozen=True)
class Engine:
    """``exact``: computes in float32, so that its tokens must be those of ``BASE``."""

    name: str
    worker: str
    folder: str
    exact: bool

    @property
    def ours(self) -> bool:
        return self.worker == "t5edge"


ENGINES = (
    Engine(BASE, "t5edge", "t5edge-fp32", exact=True),
    Engine("t5edge int8-weight", "t5edge", "t5edge-int8-weight", exact=False),
    Engine("transformers eager", "transformers", "checkpoint", exact=True),
    Engine("optimum-onnx", "optimum", "optimum", exact=True),
    Engine("CTranslate2 fp32", "ctranslate2", "ctranslate2", exact=False),  # its n-grams leave out the start token
    Engine("CTranslate2 int8", "ctranslate2-int8", "ctranslate2-int8", exact=False),
)


@dataclass(frozen=True)
class Task:
    batch: int
    source: int
    new_tokens: int
    beams: int

    @property
    def title(self) -> str:
        search = f"beam {self.beams}" if self.beams > 1 else "greedy"
        return f"batch {self.batch}, {self.source} source tokens, {self.new_tokens} new, {search}"

    def request(self, vocab_size: int) -> dict[str, Any]:
        """Random words and the end token, as a tokenizer would give."""
        import numpy as np

        ids = np.random.default_rng(0).integers(3, vocab_size, (self.batch, self.source))
        ids[:, -1] = 1
        return {"input_ids": ids.tolist(), "new_tokens": self.new_tokens, "beams": self.beams}


class Worker:
    """One engine's process; ``ask`` waits for its answer."""

    def __init__(self, engine: Engine, work: Path, python: Path, threads: int) -> None:
        executable = sys.executable if engine.ours else str(python)
        path = {"PYTHONPATH": str(WORKER.parent.parent)} if engine.ours else {}
        environment = {**os.environ, **OFFLINE, **path, "OMP_NUM_THREADS": str(threads)}
        self.log = (work / f"worker-{engine.folder}.log").open("w")
        self.process = subprocess.Popen(
            [executable, str(WORKER), engine.worker, str(work / engine.folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended; see {self.log.name}")
        return json.loads(line)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.log.close()


def prepare(work: Path, variant: str, python: Path) -> None:
    """Make what is missing: a checkpoint, and every engine's model of it."""
    checkpoint = work / "checkpoint"
    if not (checkpoint / "tokenizer_config.json").is_file():
        save_checkpoint(variant, checkpoint)
    source, bin_folder = str(checkpoint), python.parent
    for precision in ("fp32", "int8-weight"):
        command = [sys.executable, "cli.py", "export", "--variant", source, "--precision", precision, "--no-verify"]
        _make(work, f"t5edge-{precision}", [*command, "--target", "onnxruntime", "--out"])
    task = ["--task", "text2text-generation-with-past"]
    _make(work, "optimum", [str(bin_folder / "optimum-cli"), "export", "onnx", "--model", source, *task])
    convert = [str(bin_folder / "ct2-transformers-converter"), "--model", source]
    _make(work, "ctranslate2", [*convert, "--output_dir"])
    _make(work, "ctranslate2-int8", [*convert, "--quantization", "int8", "--output_dir"])


def _make(work: Path, name: str, command: list[str]) -> None:
    if not (work / name).exists():
        run([*command, str(work / name)], work / f"{name}.log", **OFFLINE)


def measure(workers: dict[str, Worker], request: dict[str, Any], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Answers per engine, one per round behind that to ``CHECK``; the order turns with every round."""
    answers = {name: [worker.ask({**request, **CHECK})] for name, worker in workers.items()}
    names = list(workers)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(PAUSE)
            answers[name].append(workers[name].ask(request))
    return answers


def summarize(answers: dict[str, list[dict[str, Any]]], task: Task) -> dict[str, dict[str, Any]]:
    """Per engine: seconds, tokens/s, how much slower than ours in fp32, agreement with its tokens, memory."""
    base = [answer["seconds"] for answer in answers[BASE][1:]]
    expected = answers[BASE][0]["tokens"]
    summary = {}
    for name, (first, *entries) in answers.items():
        seconds = [answer["seconds"] for answer in entries]
        ratios = [own / ours for own, ours in zip(seconds, base, strict=True)]
        median = statistics.median(seconds)
        counts = {len(row) for answer in entries for row in answer["tokens"]}
        summary[name] = {
            "seconds": {"median": median, "low": min(seconds), "high": max(seconds)},
            "tokens_per_second": task.batch * task.new_tokens / median,
            "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
            "same_tokens": agreement(expected, first["tokens"]),
            "counts": sorted(counts),
            "peak_mib": entries[-1]["peak_mib"],
        }
    return summary


def agreement(expected: list[list[int]], other: list[list[int]]) -> float:
    """Share of positions with the same token."""
    pairs = [pair for ours, theirs in zip(expected, other, strict=True) for pair in zip(ours, theirs, strict=False)]
    return sum(ours == theirs for ours, theirs in pairs) / sum(len(row) for row in expected)


def check(summary: dict[str, dict[str, Any]], task: Task) -> list[str]:
    """What is wrong: another count of tokens, or other tokens from a float32 engine."""
    exact = {engine.name for engine in ENGINES if engine.exact}
    problems = []
    for name, facts in summary.items():
        if facts["counts"] != [task.new_tokens]:
            problems.append(f"{name} generated {facts['counts']} tokens instead of {task.new_tokens}")
        if name in exact and facts["same_tokens"] < 1:
            problems.append(f"{name} computes in float32 but only {facts['same_tokens']:.1%} of its tokens are ours")
    return problems


def show(console: Console, title: str, summary: dict[str, dict[str, Any]]) -> None:
    console.width = max(console.width, 120)
    columns = ("engine", "seconds", "tokens/s", "time / ours fp32", "same tokens", "peak MiB")
    table = Table(*columns, title=title, title_justify="left", box=box.MARKDOWN)
    for name, facts in summary.items():
        spread = [
            f"{facts[key]['median']:.3g} ({facts[key]['low']:.3g} to {facts[key]['high']:.3g})"
            for key in ("seconds", "ratio")
        ]
        rate, same, peak = facts["tokens_per_second"], facts["same_tokens"], facts["peak_mib"]
        table.add_row(name, spread[0], f"{rate:.1f}", spread[1], f"{same:.1%}", f"{peak:.0f}")
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="google-t5/t5-base")
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--source", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--task", nargs="+", default=["1x1", "16x1", "1x4"], help="BATCHxBEAMS")
    parser.add_argument("--prepare-only", action="store_true")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments.variant, arguments.peer_python.absolute())
    if arguments.prepare_only:
        return 0
    vocab_size = json.loads((work / "checkpoint" / "config.json").read_text())["vocab_size"]
    console, problems, report = Console(), [], {}
    workers = {engine.name: Worker(engine, work, arguments.peer_python, arguments.threads) for engine in ENGINES}
    try:
        for worker in workers.values():
            worker.read()
        for pair in arguments.task:
            batch, beams = map(int, pair.split("x"))
            task = Task(batch, arguments.source, arguments.new_tokens, beams)
            summary = summarize(measure(workers, task.request(vocab_size), arguments.rounds), task)
            load = os.getloadavg()[0]
            show(console, f"{arguments.variant}: {task.title} (load average {load:.1f})", summary)
            problems += [f"{task.title}: {problem}" for problem in check(summary, task)]
            report[pair] = {"task": asdict(task), "load_average": load, "engines": summary}
    finally:
        for worker in workers.values():
            worker.close()
    (work / "peers.json").write_text(json.dumps({"tasks": report, "problems": problems}, indent=2))
    for problem in problems:
        console.print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
