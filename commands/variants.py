"""``t5edge variants``: the family as a table, and what each member would cost on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.commands.result import Result
from t5edge.commands.table import print_table
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from t5edge.exporter.family.variants import Variant
    from t5edge.tools.planning.plan import VariantCost

COLUMNS = ("name", "family", "parameters", "d_model", "heads", "d_kv", "d_ff", "layers", "ffn", "tied", "vocab")
PLAN_COLUMNS = (
    "parameters",
    "bundle\nMB",
    "weights\nMB/token",
    "KV\nB/token",
    "cross KV\nB/token",
    "encoder\nGFLOP",
    "encoder\nms",
    "decode\nms/token",
)
FIRST = ("parameters", "layers", "d_model", "d_ff", "heads", "d_kv", "ffn", "vocab", "family", "tied")
PLAN_FIRST = (
    "bundle\nMB",
    "decode\nms/token",
    "encoder\nms",
    "parameters",
    "weights\nMB/token",
    "encoder\nGFLOP",
    "KV\nB/token",
    "cross KV\nB/token",
)
"""Columns by their worth to a reader whose terminal is too narrow for all."""


@dataclass(frozen=True)
class VariantsOptions:
    """What ``variants`` takes."""

    pattern: tuple[str, ...] = option("names or patterns such as 't5-efficient-*' (default: all)", (), positional=True)
    plan: bool = option("what each variant would cost on a device: bytes, FLOPs, roofline latency", False)
    precision: str = option("precision to plan for", "fp16", metavar="P")
    device: str | None = option(
        "jetson-orin-nano, jetson-agx-orin, rtx-4060, l4, or this-cpu, which is measured (default)",
        None,
        metavar="NAME",
    )
    bandwidth: float | None = option("another device: memory bandwidth in GB/s, with --tflops", None, metavar="X")
    tflops: float | None = option("another device: peak TFLOP/s, with --bandwidth", None, metavar="X")
    source_length: int = option("source tokens to plan for", 512, metavar="N")
    past_length: int = option("tokens in the cache at the planned decode step", 64, metavar="N")
    plot: str | None = option("draw the plan as an image (default variants: T5-Efficient)", None, metavar="PNG")

    @property
    def planned(self) -> bool:
        """Whether any flag asks for a plan."""
        return self.plan or self.plot is not None


def run(options: VariantsOptions, progress: Progress) -> Result:
    """Every row, or those that match a pattern; with ``--plan`` or ``--plot`` their costs."""
    from t5edge.exporter.family.variants import expand_patterns, variants

    given = list(options.pattern) or (["t5-efficient-*"] if options.plot else [])
    rows = expand_patterns(given) if given else variants()
    return _planned(options, rows, progress) if options.planned else _listed(rows)


def _listed(rows: list[Variant]) -> Result:
    data = [row.as_dict() for row in rows]

    def show(console: Console) -> None:
        cells = [_cells(row) for row in data]
        print_table(console, f"{len(data)} variants", COLUMNS, cells, FIRST)
        if any(row.get("note") for row in data):
            console.print("* the card's own parameter count differs; see --json", highlight=False)

    return Result(data, show)


def _cells(row: dict[str, Any]) -> list[str]:
    """Of a variant, in the order of ``COLUMNS``."""
    parameters = f"{row['parameters'] / 1e6:,.1f} M" + ("*" if row.get("note") else "")
    sizes = [str(row[key]) for key in ("d_model", "num_heads", "d_kv", "d_ff")]
    layers = f"{row['encoder_layers']}+{row['decoder_layers']}"
    tied = "yes" if row["tied"] else "no"
    return [row["name"], row["family"], parameters, *sizes, layers, row["ffn"], tied, str(row["vocab_size"])]


def _planned(options: VariantsOptions, rows: list[Variant], progress: Progress) -> Result:
    from t5edge.bundle.precision import precision
    from t5edge.tools.planning.devices import THIS_CPU, DeviceSpec, custom_device, find_device
    from t5edge.tools.planning.plan import Lengths, plan_variant

    if options.source_length < 1 or options.past_length < 0:
        raise UserError("--source-length must be at least 1, and --past-length at least 0.")
    row, lengths = precision(options.precision), Lengths(options.source_length, options.past_length)
    device: DeviceSpec
    if options.bandwidth is not None or options.tflops is not None:
        if options.device is not None:
            raise UserError("--device and --bandwidth/--tflops exclude each other; give one of them.")
        device = custom_device(options.bandwidth or 0.0, options.tflops or 0.0)
    else:
        device = find_device(options.device or THIS_CPU)
    plans = [plan_variant(variant, row, device, lengths) for variant in rows]
    if options.plot is not None:
        from t5edge.tools.planning.plot import draw

        draw(plans, device, lengths, Path(options.plot))
        progress.message(f"drew {len(plans)} variants into '{options.plot}'")
    facts = {"device": device.to_dict(), "source_length": lengths.source, "past_length": lengths.past}
    data = [
        {**variant.as_dict(), "plan": {**plan.to_dict(), **facts}} for variant, plan in zip(rows, plans, strict=True)
    ]
    return Result(data, lambda console: _show_plans(console, plans, facts))


def _plan_cells(plan: VariantCost) -> list[str]:
    return [
        plan.name.rpartition("/")[2],
        f"{plan.parameters / 1e6:,.1f} M",
        f"{plan.bundle_bytes / 1e6:,.1f}",
        f"{plan.bytes_per_token / 1e6:,.1f}",
        f"{plan.kv_bytes_per_token:,}",
        f"{plan.cross_kv_bytes_per_source_token:,}",
        f"{plan.encoder_flops / 1e9:,.1f}",
        *(f"{latency.ms:,.3f} {latency.bound[0]}" for latency in (plan.encoder, plan.decode)),
    ]


def _show_plans(console: Console, plans: list[VariantCost], facts: dict[str, Any]) -> None:
    device = facts["device"]
    title = (
        f"{len(plans)} variants in {plans[0].precision} on {device['name']}, source {facts['source_length']}, batch 1"
    )
    print_table(console, title, ("name", *PLAN_COLUMNS), [_plan_cells(plan) for plan in plans], PLAN_FIRST, right=True)
    rates = ", ".join(f"{rate:.3g} {dtype}" for dtype, rate in device["tflops"].items())
    console.print(f"{device['bandwidth']:.4g} GB/s; TFLOP/s: {rates} ({device['source']})", highlight=False)
    console.print("m: bound by memory, c: by compute; rooflines are bounds from below", highlight=False)
    console.print("Accuracy is not in this table.", highlight=False)
