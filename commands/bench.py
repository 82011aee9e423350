"""``t5edge bench``: how fast a bundle runs here, and how far that is from what this machine could do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.commands.result import Result, shown
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress
from t5edge.runtime.backend import find_backend

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "batch",
    "source",
    "encoder\nms",
    "first token\nms",
    "per token\nms",
    "tokens/s",
    "step/\nfloor",
    "peak\nMiB",
)

PIPED_WIDTH = 132
"""Columns of the table where it goes into a file or pipe."""


@dataclass(frozen=True)
class BenchOptions:
    """What ``bench`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    batch: tuple[int, ...] = option("batch sizes (default: 1 4 16)", (), metavar="N")
    source: tuple[int, ...] = option("source lengths in tokens (default: 16 64 256 512)", (), metavar="N")
    new_tokens: int = option("tokens to generate for each source", 32, metavar="N")
    threads: int | None = option("threads of the onnxruntime target (default: one per core)", None, metavar="N")
    quick: bool = option("a few seconds: batch 1, source 16 and 64, at most 8 new tokens", False)
    plot: str | None = option("draw the figures as an image", None, metavar="PNG")

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads is {self.threads}; a whole number of at least 1 is needed.")
        if self.threads is not None and not find_backend(self.target).takes_threads:
            raise UserError(f"--threads is for the CPU, and {self.target} takes none; leave it out.")

    @property
    def settings(self) -> dict[str, Any]:
        """What ``bench_bundle`` takes."""
        given: dict[str, Any] = {"new_tokens": self.new_tokens}
        if self.quick:
            given = {"batches": (1,), "sources": (16, 64), "new_tokens": min(self.new_tokens, 8), "rounds": (3, 3)}
        if self.batch:
            given["batches"] = self.batch
        if self.source:
            given["sources"] = self.source
        return given


def run(options: BenchOptions, progress: Progress) -> Result:
    """Measure, draw where asked, and report."""
    from t5edge.runtime.model import load
    from t5edge.tools.bench.bench import bench_bundle

    settings: dict[str, Any] = {} if options.threads is None else {"threads": options.threads}
    model = load(options.bundle, options.target, **settings)
    model.require_decoder("steps to time")
    report = bench_bundle(model, **options.settings, progress=progress)
    report |= {"target": options.target, "threads": options.threads}
    if options.plot:
        from t5edge.tools.bench.plot import draw

        draw(report, Path(options.plot))
    return Result(report, lambda console: _show(console, report))


def _show(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    from t5edge.tools.costs import MISSING

    machine = report["machine"]
    title = shown(f"{report['variant']} in {report['precision']} on {report['target']}")
    table = Table(*COLUMNS, title=title, title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for row in report["rows"]:
        figures = [_spread(row[key]) for key in ("encoder_ms", "first_token_ms", "per_token_ms", "tokens_per_second")]
        peak = _plain(row["peak_mib"], ".0f")
        table.add_row(str(row["batch"]), str(row["source"]), *figures, _plain(row["step_over_floor"], ".2f"), peak)
    lowest, highest = (pick(row["read_gb_s"] for row in report["rows"]) for pick in (min, max))
    bandwidth = f"{lowest:.1f} to {highest:.1f} GB/s" if len(report["rows"]) > 1 else f"{lowest:.1f} GB/s"
    console.print(table, width=None if console.is_terminal else PIPED_WIDTH)
    step_bytes = report["rows"][0]["step_bytes"]
    console.print(
        f"median [quartiles] of {min(row['rounds'] for row in report['rows'])} or more rounds, "
        f"{report['rows'][0]['new_tokens']} new tokens. Floor: the "
        f"{_plain(None if step_bytes is None else step_bytes / 1e6, '.1f')} MB of "
        f"weights that a step reads, at {bandwidth}, measured before and after each size; "
        "below 1 they stay in a cache. "
        f"Peak float32: {machine['fp32_tflops']:.3f} TFLOP/s ({machine['source']}).",
        highlight=False,
        markup=False,
    )
    if step_bytes is None:
        console.print(MISSING, highlight=False, markup=False, soft_wrap=True)


def _plain(figure: float | None, form: str) -> str:
    return "?" if figure is None else format(figure, form)


def _spread(figure: dict[str, float]) -> str:
    return f"{figure['median']:.3g} \\[{figure['low']:.3g}, {figure['high']:.3g}]"
