"""``t5edge inspect``: what is in a bundle, and what each graph costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.manifest import read_manifest
from t5edge.bundle.precision import Precision
from t5edge.commands.result import Result
from t5edge.options import option
from t5edge.progress import Progress
from t5edge.runtime.tensorrt.records import engine_lines

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class InspectOptions:
    """What ``inspect`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    source_length: int = option("source tokens for the cost columns", 128, metavar="N")
    past_length: int = option("tokens already generated, for the cost columns", 64, metavar="N")


def run(options: InspectOptions, progress: Progress) -> Result:
    """Manifest facts, operators, bytes and multiply-adds of each graph, parity verdicts."""
    from t5edge.exporter.graph.costs import graph_costs

    folder = Path(options.bundle)
    manifest = read_manifest(folder)
    sizes = {"batch": 1, "source": options.source_length, "target": 1, "past": options.past_length}
    costs = {
        name: graph_costs(folder / f"{name}.onnx", sizes)
        for name in ("encoder", "decoder")
        if (folder / f"{name}.onnx").is_file()
    }
    data = {**manifest, "graphs": costs, "cost_sizes": sizes}
    return Result(data, lambda console: _show(console, folder, data))


def _show(console: Console, folder: Path, data: dict[str, Any]) -> None:
    from rich.table import Table

    a, precision = data["architecture"], Precision.from_dict(data["precision"])
    console.print(
        f"[bold]{folder}[/bold]  {data['variant']} in {precision.title}, {a['parameters'] / 1e6:.1f} M "
        f"parameters, {a['encoder_layers']}+{a['decoder_layers']} layers, d_model {a['d_model']}, "
        f"{a['num_heads']} heads of {a['d_kv']}",
        highlight=False,
    )
    files = Table("file", "bytes", title="files", title_justify="left")
    for name, facts in data["files"].items():
        files.add_row(name, f"link to {facts['link']}" if "link" in facts else f"{facts['bytes']:,}")
    console.print(files)
    sizes = data["cost_sizes"]
    title = f"graphs at batch 1, source {sizes['source']}, past {sizes['past']}, one new token"
    graphs = Table("graph", "nodes", "weights MB", "MFLOP", "operators", title=title, title_justify="left")
    for name, cost in data["graphs"].items():
        operators = ", ".join(f"{op} {count}" for op, count in cost["operators"].items())
        row = (str(cost["nodes"]), f"{cost['weight_bytes'] / 1e6:.1f}", f"{cost['flops'] / 1e6:.1f}")
        graphs.add_row(name, *row, operators)
    console.print(graphs)
    for line in engine_lines(data["engines"]):
        console.print(line, highlight=False)
    rescale = data["rescale"]
    console.print(
        f"rescale: encoder k={rescale['encoder']['k']}, decoder k={rescale['decoder']['k']}; "
        f"parity: {_verdict(data['parity'])}",
        highlight=False,
    )


def _verdict(parity: dict[str, Any] | None) -> str:
    if not parity:
        return "not run"
    return "passed" if parity.get("passed") else "failed"
