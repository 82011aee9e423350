"""``t5edge inspect``: what is in a bundle, and what each graph costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.manifest import GRAPHS, Manifest
from t5edge.commands.result import Result, shown
from t5edge.options import option
from t5edge.progress import Progress
from t5edge.runtime.tensorrt.records import engine_lines
from t5edge.tools.costs import MISSING, bundle_costs

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class InspectOptions:
    """What ``inspect`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    source_length: int = option("source tokens for the cost columns", 128, metavar="N")
    past_length: int = option("tokens already generated, for the cost columns", 64, metavar="N")


def run(options: InspectOptions, progress: Progress) -> Result:
    """Manifest facts, operators, bytes and multiply-adds of each graph, parity verdicts."""
    folder = Path(options.bundle)
    manifest = Manifest.read(folder)
    sizes = {"batch": 1, "source": options.source_length, "target": 1, "past": options.past_length}
    counted = bundle_costs(folder, manifest)
    costs = None if counted is None else {name: counted[name].at(sizes) for name in GRAPHS if name in counted}
    data = {**manifest.to_dict(), "graphs": costs, "cost_sizes": sizes}
    return Result(data, lambda console: _show(console, folder, manifest, data))


def _show(console: Console, folder: Path, manifest: Manifest, data: dict[str, Any]) -> None:
    a = manifest.architecture
    console.print(
        f"[bold]{shown(folder)}[/bold]  {shown(manifest.variant)} in {shown(manifest.precision.title)}, "
        f"{a.parameters / 1e6:.1f} M parameters, {_layers(manifest)}, d_model {a.d_model}, "
        f"{a.num_heads} heads of {a.d_kv}",
        highlight=False,
    )
    if manifest.portable:
        console.print(f"portable graphs, opset {manifest.opset}: without fused operators", highlight=False)
    if manifest.sentence is not None:
        facts = manifest.sentence
        steps = [step.kind if step.kind == "normalize" else f"{step.kind} {step.size}" for step in facts.steps]
        how = shown(", ".join([*facts.pooling, *steps]))
        console.print(f"sentence embeddings of {facts.dimension} numbers: {how}", highlight=False)
    for prompt in manifest.prompts or ():
        ids = f"ids {prompt.ids[0]} to {prompt.ids[-1]}" if len(prompt.ids) > 1 else f"id {prompt.ids[0]}"
        line = f"prompt {prompt.name}: {prompt.kind} of {prompt.tokens} virtual tokens, {ids}, {prompt.source}"
        console.print(shown(line), highlight=False)
    console.print(_files(manifest))
    console.print(_graphs(data["graphs"], data["cost_sizes"], a.stacks))
    if data["graphs"] is None:
        console.print(MISSING, highlight=False, soft_wrap=True)
    for line in engine_lines(manifest.engines):
        console.print(shown(line), highlight=False)
    parity = "not run" if manifest.parity is None else shown(manifest.parity.describe())
    rescale = ", ".join(f"{stack} k={getattr(manifest.rescale, stack).k}" for stack in a.stacks)
    console.print(f"rescale: {rescale}; parity: {parity}", highlight=False)


def _layers(manifest: Manifest) -> str:
    a = manifest.architecture
    return (
        f"an encoder alone of {a.encoder_layers} layers"
        if a.encoder_alone
        else (f"{a.encoder_layers}+{a.decoder_layers} layers")
    )


def _files(manifest: Manifest) -> Table:
    from rich.table import Table

    table = Table("file", "bytes", title="files", title_justify="left")
    for name, facts in manifest.files.items():
        table.add_row(shown(name), f"{facts.bytes:,}" if facts.link is None else f"link to {shown(facts.link)}")
    return table


def _graphs(costs: dict[str, Any] | None, sizes: dict[str, int], graphs: Sequence[str]) -> Table:
    from rich.table import Table

    title = f"graphs at batch 1, source {sizes['source']}, past {sizes['past']}, one new token"
    table = Table("graph", "nodes", "weights MB", "MFLOP", "operators", title=title, title_justify="left")
    for name in graphs if costs is None else ():
        table.add_row(name, *"????")
    for name, cost in (costs or {}).items():
        operators = ", ".join(f"{shown(op)} {count}" for op, count in cost["operators"].items())
        row = (str(cost["nodes"]), f"{cost['weight_bytes'] / 1e6:.1f}", f"{cost['flops'] / 1e6:.1f}")
        table.add_row(name, *row, operators)
    return table
