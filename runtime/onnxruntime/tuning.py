"""Measure the kernels that a bundle may run with on this machine, in turn, and remember the fastest of each graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from t5edge.bundle.manifest import Manifest
from t5edge.progress import Progress
from t5edge.runtime.onnxruntime.kernels import Kernels, candidates, choose, keep_tuning

Start = Callable[[Mapping[str, Kernels]], Any]
SOURCES = (16, 64, 256)
ROUNDS = 7
BETTER = 0.97
"""Other kernels than those chosen by the CPU's facts must take at most this part of their time."""


@dataclass(frozen=True)
class Timing:
    """Fastest milliseconds of one way to run a graph, by what was run."""

    graph: str
    kernels: str
    milliseconds: dict[str, float]

    @property
    def total(self) -> float:
        """The sum of logarithms: every size counts alike."""
        return float(np.log(list(self.milliseconds.values())).sum())


@dataclass(frozen=True)
class Tuning:
    """What was measured and chosen. ``file``: where it is kept."""

    timings: tuple[Timing, ...]
    chosen: dict[str, str]
    file: Path


def measure(manifest: Manifest, start: Start, progress: Progress) -> Tuning:
    """Measure every candidate of every graph, and keep the fastest. A graph without a choice is not measured.

    ``start`` opens the bundle with these kernels for these graphs.

    Raises:
        UserError: onnxruntime cannot load a graph.
    """
    timings: list[Timing] = []
    chosen: dict[str, str] = {}
    for graph in manifest.architecture.stacks:
        rows = candidates(manifest, graph)
        usual_name = choose(manifest, graph, measured=False)[0].name
        chosen[graph] = usual_name
        if len(rows) == 1:
            continue
        with progress.stage(f"kernels of the {graph}", ROUNDS, "rounds") as stage:
            found = _measure(manifest, graph, {row.name: start({graph: row}) for row in rows}, stage.advance)
        timings += found
        best = min(found, key=lambda timing: timing.total)
        usual = next(timing for timing in found if timing.kernels == usual_name)
        if best.total <= usual.total + len(usual.milliseconds) * np.log(BETTER):
            chosen[graph] = best.kernels
    figures = {f"{timing.graph}, {timing.kernels}": timing.milliseconds for timing in timings}
    return Tuning(tuple(timings), chosen, keep_tuning(manifest, chosen, figures))


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
