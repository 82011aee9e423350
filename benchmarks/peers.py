"""The same generation by ours and by other toolchains, in turn, each in its own process.

    python -m benchmarks.peers --variant google-t5/t5-base --peer-python PEERS/bin/python --work FOLDER

Prepares what is missing in the work folder (checkpoint, bundles, optimum's export, CTranslate2's model), opens every
engine, warms each up, then measures in rounds: each engine generates for a second per round. Ratios are taken within
a round and their median reported, so that noise that lasts longer than a round cancels. float32 engines must agree
token for token. What is not installed is left out and named.

A task is BATCHxBEAMS[:SOURCE[:NEW]], with --source and --new-tokens as defaults; 0 new tokens measure the encoder
alone, where an engine offers it. ``--mask avx2`` runs all of them as on a CPU with AVX2 alone, see ``machine``.
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

from benchmarks import machine
from benchmarks.peer_engines import BASE, COMPILED, ENGINES, OFFLINE, OURS, Engine, chosen, installed, prepare

WORKER = Path(__file__).with_name("peer_worker.py")
PAUSE = 0.5
"""Seconds before each turn: OpenMP's threads spin for 0.2 s after their work, on the cores of the next engine."""
TURN = 1.0
"""Seconds of work that an engine does before it is measured, and while it is; a longer task runs once for each."""
CHECK = {"new_tokens": 8, "ngram": 1}
"""The warm-up, by whose tokens the engines are compared: no token twice, because random weights like to repeat one."""


@dataclass(frozen=True)
class Task:
    batch: int
    source: int
    new_tokens: int
    beams: int

    @classmethod
    def parse(cls, text: str, source: int, new_tokens: int) -> Task:
        """``BATCHxBEAMS[:SOURCE[:NEW]]``."""
        shape, *lengths = text.split(":")
        batch, beams = map(int, shape.split("x"))
        source, new_tokens = (*map(int, lengths), *(source, new_tokens)[len(lengths) :])
        return cls(batch, source, new_tokens, beams)

    @property
    def title(self) -> str:
        if not self.new_tokens:
            return f"batch {self.batch}, encoder alone, {self.source} source tokens"
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

    def __init__(self, engine: Engine, work: Path, python: Path, threads: int, mask: str | None) -> None:
        executable = sys.executable if engine.ours else str(python)
        worker = [executable, str(WORKER), engine.worker, str(work / engine.folder), str(threads)]
        path = {"PYTHONPATH": str(WORKER.parent.parent)} if engine.ours else {}
        environment = {**os.environ, **OFFLINE, **path, "OMP_NUM_THREADS": str(threads)}
        self.log = (work / f"worker-{engine.name.replace(' ', '-')}.log").open("w")
        self.settle = 0
        self.process = subprocess.Popen(
            machine.under(mask, worker),
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


def measure(workers: dict[str, Worker], request: dict[str, Any], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Answers per engine, one per round behind that to ``CHECK``; the order turns with every round."""
    answers = {name: [worker.ask({**request, **CHECK})] for name, worker in workers.items()}
    names = list(workers)
    for worker in workers.values():
        for _ in range(worker.settle):
            worker.ask(request)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(PAUSE)
            repeat(workers[name], request)  # not measured: from rest the first tenths of a second are slower
            answers[name].append(median_answer(repeat(workers[name], request)))
    return answers


def repeat(worker: Worker, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers until they have taken ``TURN`` seconds; one where the engine cannot do it."""
    answers = [worker.ask(request)]
    while answers[0]["seconds"] is not None and sum(answer["seconds"] for answer in answers) < TURN:
        answers.append(worker.ask(request))
    return answers


def median_answer(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The one with the median time (of two in the middle the faster one)."""
    return sorted(answers, key=lambda answer: answer["seconds"] or 0)[(len(answers) - 1) // 2]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarize(answers: dict[str, list[dict[str, Any]]], task: Task) -> dict[str, dict[str, Any]]:
    """Per engine that can: seconds, tokens/s, how much slower than both of ours, agreement with ours, memory."""
    seconds = {name: [answer["seconds"] for answer in entries] for name, (_, *entries) in answers.items()}
    expected = answers[BASE][0]["tokens"]
    summary = {}
    for name, (first, *entries) in answers.items():
        if None in seconds[name]:
            continue
        summary[name] = {
            "seconds": spread(seconds[name]),
            "tokens_per_second": task.batch * task.new_tokens / statistics.median(seconds[name]),
            "ratio": ratios(seconds[name], seconds[BASE]),
            "ratio_int8_weight": ratios(seconds[name], seconds[OURS]),
            "same_tokens": agreement(expected, first["tokens"]),
            "counts": sorted({len(row) for answer in entries for row in answer["tokens"]}),
            "peak_mib": entries[-1]["peak_mib"],
        }
    return summary


def ratios(seconds: list[float], base: list[float]) -> dict[str, float]:
    """Within each round: above 1 is slower than ``base``."""
    return spread([own / ours for own, ours in zip(seconds, base, strict=True)])


def agreement(expected: list[list[int]], other: list[list[int]]) -> float:
    """Share of positions with the same token."""
    pairs = [pair for ours, theirs in zip(expected, other, strict=True) for pair in zip(ours, theirs, strict=False)]
    return sum(ours == theirs for ours, theirs in pairs) / sum(len(row) for row in expected)


def check(summary: dict[str, dict[str, Any]], task: Task) -> list[str]:
    """What is wrong: another count of tokens, or other tokens from a float32 engine."""
    exact = {engine.name for engine in (*ENGINES, COMPILED) if task.beams <= engine.exact}
    problems = []
    for name, facts in summary.items():
        if task.new_tokens and facts["counts"] != [task.new_tokens]:
            problems.append(f"{name} generated {facts['counts']} tokens instead of {task.new_tokens}")
        if name in exact and facts["same_tokens"] < 1:
            problems.append(f"{name} computes in float32 but only {facts['same_tokens']:.1%} of its tokens are ours")
    return problems


def show(console: Console, title: str, summary: dict[str, dict[str, Any]]) -> None:
    console.width = max(console.width, 140)
    ours = ("time / ours fp32", "time / ours int8-weight")
    table = Table(
        "engine",
        "seconds",
        "tokens/s",
        *ours,
        "same tokens",
        "peak MiB",
        box=box.MARKDOWN,
    )
    for name, facts in summary.items():
        spreads = [
            f"{facts[key]['median']:.3g} ({facts[key]['low']:.3g} to {facts[key]['high']:.3g})"
            for key in ("seconds", "ratio", "ratio_int8_weight")
        ]
        rate, same, peak = facts["tokens_per_second"], facts["same_tokens"], facts["peak_mib"]
        speed = f"{rate:.1f}" if rate else "-"
        table.add_row(name, spreads[0], speed, *spreads[1:], f"{same:.1%}", f"{peak:.0f}")
    console.print(f"### {title}\n", soft_wrap=True)
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
    parser.add_argument("--task", nargs="+", default=["1x1", "16x1", "1x4"], help="BATCHxBEAMS[:SOURCE[:NEW]]")
    parser.add_argument(
        "--engine", nargs="+", default=[], help="only these, by the start of their names, and ours in fp32"
    )
    parser.add_argument("--mask", choices=machine.MASKS, help="as on a CPU without AVX-512, or without VNNI")
    parser.add_argument("--compiled", action="store_true", help="add transformers with torch.compile: minutes per task")
    parser.add_argument("--prepare-only", action="store_true")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    work, python, mask = arguments.work, arguments.peer_python.absolute(), arguments.mask
    work.mkdir(parents=True, exist_ok=True)
    engines = installed(chosen(arguments.engine, arguments.compiled), python, mask)
    prepare(work, arguments.variant, python, engines)
    for each in (sys.executable, str(python)):
        machine.check(mask, each)
    if arguments.prepare_only:
        return 0
    report = run_tasks(
        arguments, {engine.name: Worker(engine, work, python, arguments.threads, mask) for engine in engines}
    )
    (work / f"peers{f'-{mask}' if mask else ''}.json").write_text(json.dumps(report, indent=2))
    return 1 if report["problems"] else 0


def run_tasks(arguments: argparse.Namespace, workers: dict[str, Worker]) -> dict[str, Any]:
    """Measure and show every task; what is wrong with the answers is shown last."""
    vocab_size = json.loads((arguments.work / "checkpoint" / "config.json").read_text())["vocab_size"]
    console, problems, report = Console(), list[str](), {}
    try:
        for worker in workers.values():
            worker.settle = worker.read()["settle"]
        for text in arguments.task:
            task = Task.parse(text, arguments.source, arguments.new_tokens)
            summary = summarize(measure(workers, task.request(vocab_size), arguments.rounds), task)
            facts = machine.describe(arguments.mask)
            show(console, f"{arguments.variant}: {task.title} ({facts})", summary)
            problems += [f"{task.title}: {problem}" for problem in check(summary, task)]
            report[text] = {"task": asdict(task), "machine": facts, "engines": summary}
    finally:
        for worker in workers.values():
            worker.close()
    for problem in problems:
        console.print(problem)
    return {"tasks": report, "problems": problems}


if __name__ == "__main__":
    sys.exit(main())
