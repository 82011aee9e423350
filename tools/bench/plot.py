"""A bench report as an image: the decoder step against its floor, and throughput, over the source length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5edge.tools.plotting import load_pyplot, save_figure

QUIET, ACCENT = "#8795a1", "#d1495b"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the image; its format follows the file's ending. Bars are quartiles.

    Raises:
        UserError: matplotlib is missing, or the file cannot be written.
    """
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for axes, key, label in zip(
        panels,
        ("encoder_ms", "per_token_ms", "tokens_per_second"),
        ("encoder (ms)", "decoder step (ms)", "tokens per second, encoder included"),
        strict=True,
    ):
        _panel(axes, report["rows"], key, label)
    read = [row["step_bytes"] for row in report["rows"] if row["step_bytes"] is not None]
    if read:
        floor = min(read) / report["machine"]["read_gb_s"] / 1e6
        panels[1].axhline(floor, color=ACCENT, linestyle="--", linewidth=1, label="weights / read bandwidth")
        panels[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{report['variant']} in {report['precision']}", x=0.01, ha="left", fontweight="bold")
    save_figure(figure, path)


def _panel(axes: Any, rows: list[dict[str, Any]], key: str, label: str) -> None:
    """One line for each batch size."""
    for batch in sorted({row["batch"] for row in rows}):
        own = sorted((row for row in rows if row["batch"] == batch), key=lambda row: row["source"])
        figures = [row[key] for row in own]
        middle = [figure["median"] for figure in figures]
        spread = [
            [figure["median"] - figure["low"] for figure in figures],
            [figure["high"] - figure["median"] for figure in figures],
        ]
        axes.errorbar([row["source"] for row in own], middle, spread, marker="o", capsize=3, label=f"batch {batch}")
    axes.set(xscale="log", yscale="log", xlabel="source tokens", ylabel=label)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=QUIET, which="both")
    axes.legend(frameon=False, fontsize=8)
