"""``t5edge variants``: the family as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.commands.result import Result
from exporter.options import VariantsOptions
from exporter.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def run(options: VariantsOptions, progress: Progress) -> Result:
    """Every row, or those that match a pattern."""
    from exporter.variants import expand_patterns, variants

    rows = expand_patterns(list(options.pattern)) if options.pattern else variants()
    data = [row.as_dict() for row in rows]

    def show(console: Console) -> None:
        from rich.table import Table

        names = (
            "name",
            "family",
            "parameters",
            "d_model",
            "heads",
            "d_kv",
            "d_ff",
            "layers",
            "ffn",
            "tied",
            "vocab",
        )
        table = Table(*names, title=f"{len(data)} variants", title_justify="left")
        for row in data:
            layers = f"{row['encoder_layers']}+{row['decoder_layers']}"
            sizes = [str(row[key]) for key in ("d_model", "num_heads", "d_kv", "d_ff")]
            facts = [layers, row["ffn"], "yes" if row["tied"] else "no", str(row["vocab_size"])]
            mark = "*" if row.get("note") else ""
            table.add_row(row["name"], row["family"], f"{row['parameters'] / 1e6:,.1f} M{mark}", *sizes, *facts)
        console.print(table)
        if any(row.get("note") for row in data):
            console.print("* the card's own parameter count differs; see --json", highlight=False)

    return Result(data, show)
