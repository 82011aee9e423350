"""Latency and throughput of a bundle on this machine, beside what the machine could do at best.

    encoder      one run of the encoder graph
    first token  encoder and first decoder step
    per token    a decoder step with tokens in the cache
    floor        weight bytes that a decoder step reads / this machine's read bandwidth, measured before and after

Token ids are random, so any bundle will do and none needs its tokenizer. Every figure is a median with its quartiles.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from t5edge.bundle.costs import GraphCosts
from t5edge.errors import UserError
from t5edge.progress import Progress, Silent
from t5edge.runtime.generation.step import BestModel, Tokens
from t5edge.runtime.inputs import check_memory
from t5edge.tools.costs import bundle_costs
from t5edge.tools.planning.devices import measure_this_cpu_apart

if TYPE_CHECKING:
    from t5edge.runtime.model import BundleModel

BATCHES = (1, 4, 16)
SOURCES = (16, 64, 256, 512)
ROUNDS = (3, 10)
"""Fewest and most rounds of a size, after one for warming up."""
SECONDS = 1.5
"""Beyond the fewest rounds, no new one starts after this long."""
SEED = 0


@dataclass(frozen=True)
class Figure:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One batch size at one source length.

    ``peak_mib`` is the process's peak so far; None where it is not known. ``read_gb_s``: mean of the read bandwidth
    just before and just after, in 10^9 bytes per second. ``step_bytes``: weights that a step reads; None where that is
    not known, and then ``step_over_floor`` is not known either.
    """

    batch: int
    source: int
    new_tokens: int
    rounds: int
    encoder_ms: Figure
    first_token_ms: Figure
    per_token_ms: Figure
    tokens_per_second: Figure
    peak_mib: float | None
    read_gb_s: float
    step_bytes: int | None
    step_over_floor: float | None


@dataclass(frozen=True)
class Round:
    """Seconds of one generation: the encoder, then every step."""

    encoder: float
    steps: Sequence[float]


def summarize(values: Sequence[float]) -> Figure:
    """Median and quartiles; of a single value, that value.

    >>> summarize([4.0, 1.0, 2.0, 3.0, 5.0])
    Figure(median=3.0, low=2.0, high=4.0)
    """
    if len(values) == 1:
        return Figure(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(middle, low, high)


def bench_bundle(
    model: BundleModel,
    *,
    batches: Sequence[int] = BATCHES,
    sources: Sequence[int] = SOURCES,
    new_tokens: int = 32,
    rounds: tuple[int, int] = ROUNDS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every pair of batch size and source length; see ``Row`` for what each gives.

    Raises:
        UserError: a size is not positive, or fewer than two new tokens.
    """
    sizes = _checked_sizes(batches, sources, new_tokens)
    for batch, source in sizes:
        check_memory(model.architecture, batch, source, new_tokens)
    loaded, costs = peak_mib(), (bundle_costs(model.folder, model.manifest) or {}).get("decoder")
    rows, machine = [], [measure_this_cpu_apart()]
    with (progress or Silent()).stage("bench", total=len(sizes), unit="sizes") as stage:
        for batch, source in sizes:
            stage.note(f"batch {batch}, source {source}")
            done = _measure(model, batch, source, new_tokens, rounds)
            peak = peak_mib()
            machine.append(measure_this_cpu_apart())
            bandwidth = statistics.mean(device.bandwidth for device in machine[-2:])
            rows.append(_row((batch, source, new_tokens), done, peak, bandwidth, costs))
            stage.advance()
    return {
        "bundle": str(model.folder),
        "variant": model.manifest.variant,
        "precision": model.manifest.precision.name,
        "peak_mib": {"loaded": loaded, "end": rows[-1].peak_mib},
        "machine": {
            "read_gb_s": statistics.median(device.bandwidth for device in machine),
            "fp32_tflops": statistics.median(device.tflops["float"] for device in machine),
            "source": machine[0].source,
        },
        "rows": [asdict(row) for row in rows],
    }


def _checked_sizes(batches: Sequence[int], sources: Sequence[int], new_tokens: int) -> list[tuple[int, int]]:
    if min((*batches, *sources), default=0) < 1:
        raise UserError(f"--batch {[*batches]} and --source {[*sources]} must be whole numbers of at least 1.")
    if new_tokens < 2:
        raise UserError(f"--new-tokens is {new_tokens}; at least 2 are needed, the first is timed apart.")
    return list(product(batches, sources))


def _measure(model: BundleModel, batch: int, source: int, new_tokens: int, rounds: tuple[int, int]) -> list[Round]:
    """One size: a warm-up, then rounds until the time is up."""
    ids = np.random.default_rng(SEED).integers(2, model.vocab_size, (batch, source), dtype=np.int64)
    done: list[Round] = []
    _generate(model, ids, min(new_tokens, 4))
    begin = time.perf_counter()
    fewest, most = rounds
    while len(done) < fewest or (len(done) < most and time.perf_counter() - begin < SECONDS):
        done.append(_generate(model, ids, new_tokens))
    return done


def _row(
    sizes: tuple[int, int, int],
    done: Sequence[Round],
    peak: float | None,
    bandwidth: float,
    costs: GraphCosts | None,
) -> Row:
    """The figures of one size: batch, source and new tokens."""
    batch, source, new_tokens = sizes
    per_token = summarize([1e3 * step for entry in done for step in entry.steps[1:]])
    read = _step_bytes(costs, *sizes)
    return Row(
        batch=batch,
        source=source,
        new_tokens=new_tokens,
        rounds=len(done),
        encoder_ms=summarize([1e3 * entry.encoder for entry in done]),
        first_token_ms=summarize([1e3 * (entry.encoder + entry.steps[0]) for entry in done]),
        per_token_ms=per_token,
        tokens_per_second=summarize([batch * new_tokens / (entry.encoder + sum(entry.steps)) for entry in done]),
        peak_mib=peak,
        read_gb_s=bandwidth,
        step_bytes=read,
        step_over_floor=None if read is None else per_token.median / (read / bandwidth / 1e6),
    )


def _generate(model: BundleModel, input_ids: Tokens, new_tokens: int) -> Round:
    """Greedy search over ``input_ids`` int64 [batch, source] that ends after exactly ``new_tokens`` tokens."""
    step_model = model.step_model
    begin = time.perf_counter()
    state = step_model.encode(input_ids, np.ones_like(input_ids))
    marks = [time.perf_counter()]
    start = model.manifest.architecture.decoder_start_token_id
    newest = np.full((len(input_ids), 1), start, np.int64)
    advance = _advance(step_model)
    for _ in range(new_tokens):
        newest = advance(state, newest)
        marks.append(time.perf_counter())
    return Round(marks[0] - begin, np.diff(marks).tolist())


def _advance(step_model: Any) -> Callable[[Any, Tokens], Tokens]:
    """One step: tokens int64 [batch, 1] -> the likeliest next ones, int64 [batch, 1]."""
    if isinstance(step_model, BestModel):
        return lambda state, tokens: step_model.best(state, tokens)[0][:, None]
    return lambda state, tokens: step_model.step(state, tokens).argmax(axis=-1)


def _step_bytes(costs: GraphCosts | None, batch: int, source: int, new_tokens: int) -> int | None:
    """Bytes of weights that one decoder step reads; keys and values are left out."""
    if costs is None:
        return None
    return costs.weight_bytes({"batch": batch, "source": source, "target": 1, "past": new_tokens // 2})


def peak_mib() -> float | None:
    """Largest resident set of this process so far; None where the system does not tell."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return memory.peak_wset / 2**20
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
