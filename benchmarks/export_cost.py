"""Time, memory and disk of an export against optimum's, on the same local checkpoint, in turn.

    python -m benchmarks.export_cost --variant google-t5/t5-base --peer-python PEERS/bin/python --work FOLDER

The peer runs in its own environment (see benchmarks/README.md): ``optimum-cli export onnx`` with
``--task text2text-generation-with-past``. Ours writes fp16, without verification (optimum's default validation is
switched off alike: it needs accelerate, or is skipped). Prints a table and writes ``export_cost.json`` into the work
folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import save_checkpoint
from benchmarks.processes import Cost, bytes_under, run

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def export_ours(checkpoint: Path, work: Path, precision: str) -> tuple[Cost, int]:
    out = work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "cli.py", "export", "--variant", str(checkpoint), "--precision", precision]
    cost = run([*command, "--target", "onnxruntime", "--no-verify", "--out", str(out)], work / "ours.log", **OFFLINE)
    return cost, bytes_under(out)


def export_optimum(checkpoint: Path, work: Path, python: Path) -> tuple[Cost, int]:
    out = work / "optimum"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(python.parent / "optimum-cli"), "export", "onnx", "--model", str(checkpoint)]
    task = ["--task", "text2text-generation-with-past", str(out)]
    return run([*command, *task], work / "optimum.log", **OFFLINE), bytes_under(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="google-t5/t5-base")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.work / "checkpoint"
    if not (checkpoint / "tokenizer_config.json").is_file():
        save_checkpoint(arguments.variant, checkpoint)
    rounds: dict[str, list[tuple[Cost, int]]] = {"t5edge": [], "optimum": []}
    for _ in range(arguments.rounds):
        rounds["t5edge"].append(export_ours(checkpoint, arguments.work, arguments.precision))
        rounds["optimum"].append(export_optimum(checkpoint, arguments.work, arguments.peer_python))
    report(rounds, arguments.work)


def report(rounds: dict[str, list[tuple[Cost, int]]], work: Path) -> None:
    table = Table("tool", "seconds (median)", "all", "peak MiB", "disk MB")
    medians = {}
    for tool, runs in rounds.items():
        seconds = [cost.seconds for cost, _ in runs]
        peak = max(cost.peak_mib for cost, _ in runs)
        medians[tool] = {"seconds": statistics.median(seconds), "peak_mib": peak, "disk": runs[-1][1]}
        spread = ", ".join(f"{value:.1f}" for value in seconds)
        table.add_row(tool, f"{medians[tool]['seconds']:.1f}", spread, f"{peak:.0f}", f"{runs[-1][1] / 1e6:.0f}")
    ratios = {key: medians["t5edge"][key] / medians["optimum"][key] for key in ("seconds", "peak_mib", "disk")}
    console = Console()
    console.print(table)
    console.print("ours / optimum: " + ", ".join(f"{key} {value:.3f}" for key, value in ratios.items()))
    data = {tool: [{**asdict(cost), "disk": disk} for cost, disk in runs] for tool, runs in rounds.items()}
    (work / "export_cost.json").write_text(json.dumps({"runs": data, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
