"""What was found, as JSON, as Markdown for docs/, and as a table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.gpu.plan import Step
from benchmarks.gpu.results import Result

Rows = Sequence[tuple[Step, Result]]
STYLES = {"done": "green", "failed": "red", "not run": "yellow", "running": "yellow"}


def write_json(path: Path, rows: Rows) -> None:
    """Everything, with the machine's facts first."""
    data = {step.name: {"step": asdict(step), **asdict(result)} for step, result in rows}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def as_table(rows: Rows) -> Table:
    """Every step with its state; figures are in the files."""
    table = Table(box=box.SIMPLE, title=title(rows))
    for column in ("step", "state", "found"):
        table.add_column(column, overflow="fold")
    for step, result in rows:
        table.add_row(step.name, f"[{STYLES[result.state]}]{result.state}[/]", brief(step, result))
    return table


def title(rows: Rows) -> str:
    """How many were done, failed, and not run."""
    counts = {state: sum(result.state == state for _, result in rows) for state in ("done", "failed", "not run")}
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def brief(step: Step, result: Result) -> str:
    """The result in one line."""
    facts = result.facts
    if result.state != "done":
        return f"{result.state}: {result.reason}"
    if step.kind == "logits":
        return ", ".join(f"{name} {value['largest']:.1e}" for name, value in facts.items())
    if step.kind in ("time", "torch"):
        return "; ".join(
            f"{row['batch']}x{row['source']} encoder {row['encoder_ms']:.2f} ms, step {row['step_ms']:.3f} ms"
            for row in facts["rows"]
        )
    if step.kind == "verify":
        return ", ".join(f"{name} {verdict}" for name, verdict in facts["checks"].items())
    if step.kind == "build":
        return ", ".join(f"{name} {row['bytes'] / 1e6:.1f} MB, {row['seconds']:.1f} s" for name, row in _graphs(facts))
    if step.kind == "machine":
        names = ", ".join(f"{gpu['name']} ({gpu['compute_capability']})" for gpu in facts["gpus"])
        return f"{names or 'CPU'}, reads {facts['read_gb_s']:.0f} GB/s, torch {facts['torch']}"
    return f"{facts['bytes'] / 1e6:.1f} MB"


def _graphs(facts: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(facts["graphs"].items())


def as_markdown(rows: Rows) -> str:
    """Machine, timings with their distance from the memory's limit, logits, and everything that was not run."""
    lines = [f"# On a GPU: {title(rows)}", ""]
    for heading, part in (("Machine", _machine), ("Timings", _timings), ("Logits", _logits), ("Steps", _steps)):
        lines += [f"## {heading}", "", *part(rows), ""]
    return "\n".join(lines)


def _machine(rows: Rows) -> Iterator[str]:
    for step, result in rows:
        if step.kind == "machine":
            yield brief(step, result)
            for target in result.facts.get("targets", ()):
                yield f"- {target['target']}: {target['version'] or 'not installed'} {target['reason']}".rstrip()


def _timings(rows: Rows) -> Iterator[str]:
    """A step over the floor: its weights' bytes at the read bandwidth of the GPU's memory."""
    bandwidth = next((result.facts.get("read_gb_s") for step, result in rows if step.kind == "machine"), None)
    yield "| what | batch x source | encoder (ms) | step (ms) | step / memory limit |"
    yield "|---|---|---|---|---|"
    for step, result in rows:
        for row in result.facts.get("rows", ()):
            floor = row["weight_bytes"] / bandwidth / 1e6 if bandwidth and "weight_bytes" in row else None
            ratio = "" if floor is None else f"{row['step_ms'] / floor:.1f}x"
            size = f"{row['batch']} x {row['source']}"
            yield f"| {step.name} | {size} | {row['encoder_ms']:.2f} | {row['step_ms']:.3f} | {ratio} |"


def _logits(rows: Rows) -> Iterator[str]:
    yield "Largest difference from float32 PyTorch on this GPU over the largest logit, and equal best tokens."
    yield ""
    yield "| what | in steps | in one pass | PyTorch's own rounding | best token, in steps |"
    yield "|---|---|---|---|---|"
    for step, result in rows:
        if step.kind == "logits" and result.facts:
            steps, whole, own = result.facts.values()
            cells = (step.name, *(f"{found['largest']:.1e}" for found in (steps, whole, own)), f"{steps['top1']:.1%}")
            yield f"| {' | '.join(cells)} |"


def _steps(rows: Rows) -> Iterator[str]:
    yield "| step | state | found |"
    yield "|---|---|---|"
    for step, result in rows:
        yield f"| {step.name} | {result.state} | {brief(step, result).replace('|', '/')} |"
