"""Measure the kernels and numbers of threads that a bundle may run with here, in turn; keep the fastest of each graph.

Kernels first, then threads with the kernels that were chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from t5edge.bundle.manifest import Manifest
from t5edge.progress import Progress
from t5edge.runtime.onnxruntime.kernels import KERNELS, Kernels, candidates, choose, keep_tuning

Start = Callable[[Mapping[str, Kernels]], Any]
SOURCES = (16, 64, 256)
ROUNDS = 7
BETTER = 0.97
"""Others than those chosen by the CPU's facts must take at most this part of their time."""


@dataclass(frozen=True)
class Timing:
    """Fastest milliseconds of one way to run a graph, by what was run. ``threads``: 0 for the usual number."""

    graph: str
    kernels: str
    milliseconds: dict[str, float]
    threads: int = 0

    @property
    def total(self) -> float:
        """The sum of logarithms: every size counts alike."""
        return float(np.log(list(self.milliseconds.values())).sum())

    def beats(self, usual: Timing) -> bool:
        """Whether this is enough faster than the usual one to be taken."""
        return self.total <= usual.total + len(usual.milliseconds) * float(np.log(BETTER))


@dataclass(frozen=True)
class Tuning:
    """What was measured and chosen: the kernels of each graph, and threads where others than the usual are faster.

    ``file``: where it is kept.
    """

    timings: tuple[Timing, ...]
    chosen: dict[str, str]
    threads: dict[str, int]
    file: Path

    def mark(self, timing: Timing) -> str:
        """Say "yes" of what was chosen: kernels by their first measurement, threads by theirs."""
        counted = [row.threads for row in self.timings if row.graph == timing.graph and row.threads]
        same = timing.kernels == self.chosen[timing.graph]
        if timing.threads:
            same = timing.threads == self.threads.get(timing.graph, counted[0])
        return "yes" if same else ""


def measure(manifest: Manifest, start: Start, progress: Progress, counts: Sequence[int] = ()) -> Tuning:
    """Measure every candidate of every graph, and keep the fastest. A graph without a choice is not measured.

    ``start`` opens the bundle with these kernels for these graphs; ``counts``: numbers of threads, the usual one first.

    Raises:
        UserError: onnxruntime cannot load a graph.
    """
    timings: list[Timing] = []
    chosen: dict[str, str] = {}
    for graph in manifest.architecture.stacks:
        rows = candidates(manifest, graph)
        chosen[graph] = choose(manifest, graph, measured=False)[0].name
        if len(rows) == 1:
            continue
        with progress.stage(f"kernels of the {graph}", ROUNDS, "rounds") as stage:
            found = _measure(manifest, graph, {row.name: start({graph: row}) for row in rows}, stage.advance)
        timings += found
        usual = next(timing for timing in found if timing.kernels == chosen[graph])
        chosen[graph] = _fastest(found, usual).kernels
    threads: dict[str, int] = {}
    if len(counts) > 1:
        by_graph = _measure_threads(manifest, start, progress, chosen, counts)
        timings += [timing for found in by_graph.values() for timing in found]
        best = {graph: _fastest(found, found[0]).threads for graph, found in by_graph.items()}
        threads = {graph: count for graph, count in best.items() if count != counts[0]}
    figures = {f"{row.graph}, {row.kernels}, {row.threads or 'usual'} threads": row.milliseconds for row in timings}
    return Tuning(tuple(timings), chosen, threads, keep_tuning(manifest, chosen, figures, threads))


def _fastest(found: Sequence[Timing], usual: Timing) -> Timing:
    best = min(found, key=lambda timing: timing.total)
    return best if best.beats(usual) else usual


def _measure_threads(
    manifest: Manifest, start: Start, progress: Progress, chosen: Mapping[str, str], counts: Sequence[int]
) -> dict[str, list[Timing]]:
    """Every graph with its kernels and each of ``counts``, there and back: one open bundle at a time."""
    taken: dict[str, dict[int, dict[str, float]]] = {graph: {} for graph in chosen}
    with progress.stage("threads", 2 * len(counts), "rounds") as stage:
        for count in (*counts, *reversed(counts)):
            model = start({graph: replace(KERNELS[name], threads=count) for graph, name in chosen.items()})
            for graph, best in taken.items():
                for _ in range(ROUNDS // 2 + 1):
                    for what, seconds in _run(model, graph, manifest.architecture.vocab_size):
                        rows = best.setdefault(count, {})
                        rows[what] = min(round(1e3 * seconds, 3), rows.get(what, float("inf")))
            stage.advance()
    return {
        graph: [Timing(graph, chosen[graph], milliseconds, count) for count, milliseconds in best.items()]
        for graph, best in taken.items()
    }


def _measure(manifest: Manifest, graph: str, models: Mapping[str, Any], done: Callable[[], None]) -> list[Timing]:
    """Every way in turn, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            for what, taken in _run(model, graph, manifest.architecture.vocab_size):
                seconds[name].setdefault(what, []).append(taken)
        done()
    return [
        Timing(graph, name, {what: round(1e3 * min(taken), 3) for what, taken in by_size.items()})
        for name, by_size in seconds.items()
    ]


def _run(model: Any, graph: str, vocab_size: int) -> list[tuple[str, float]]:
    random, found = np.random.default_rng(0), []
    for source in SOURCES if graph == "encoder" else SOURCES[1:2]:
        ids = random.integers(2, vocab_size, (1, source))
        mask = np.ones_like(ids)
        if graph == "encoder":
            begin = time.perf_counter()
            model.hidden_and_cross(ids, mask)
            found.append((f"{source} tokens", time.perf_counter() - begin))
            continue
        state, taken = model.encode(ids, mask), []
        for _ in range(6):
            begin = time.perf_counter()
            model.step(state, ids[:, :1])
            taken.append(time.perf_counter() - begin)
        found.append(("step", median(taken)))
    return found
