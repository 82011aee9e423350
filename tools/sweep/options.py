"""What ``export`` takes on the command line: one export, or many."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from t5edge.errors import UserError
from t5edge.options import ExportOptions, option

PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class SweepOptions(ExportOptions):
    """What ``export`` takes on the command line: the options of one export, with lists where it has names."""

    variant: tuple[str, ...] = option(  # type: ignore[assignment]
        "names in the table or patterns such as 't5-efficient-*', hub ids, checkpoint folders, or t5-demo",
        (),
        metavar="V",
    )
    precision: tuple[str, ...] = option(  # type: ignore[assignment]
        "fp32, fp16, bf16, int8, int8-weight or int4-weight; several make a sweep (default: fp32)",
        (),
        metavar="P",
    )
    out: str | None = option(
        "bundle folder (default: <variant>-<precision> here); for a sweep the folder or fsspec URL around them",
        None,
        metavar="DIR",
    )
    force: bool = option("replace an existing bundle; in a sweep, those made from other inputs", False)
    jobs: int | None = option("a sweep's exports at a time (default: as memory and cores allow)", None, metavar="N")
    ray: str | None = option("sweep on the Ray cluster at this address", None, metavar="ADDRESS")
    config: str | None = option(
        "a TOML file of these options, such as max-batch = 4; the command line comes before it", None, metavar="FILE"
    )
    dry_run: bool = option("say what would be exported, from where and into which files, and stop", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs}; a whole number of at least 1 is needed.")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Each asked-for precision once."""
        return tuple(dict.fromkeys(self.precision)) or (ExportOptions.precision,)

    @property
    def is_sweep(self) -> bool:
        """Whether anything asks for more than one plain export."""
        alone = len(self.variant) == len(self.precisions) == 1 and not is_pattern(self.variant[0])
        return not alone or self.jobs is not None or self.ray is not None or "://" in (self.out or "")

    def variants(self) -> list[str]:
        """Each variant once, in the order given; patterns expanded from the table, names in full.

        Raises:
            UserError: a pattern that matches nothing.
        """
        from t5edge.exporter.family.variants import expand_patterns, look_up_variant

        names: list[str] = []
        for given in self.variant:
            row = None if Path(given).exists() else look_up_variant(given)
            names += [row.name] if row else [given]
            if is_pattern(given):
                names[-1:] = [match.name for match in expand_patterns([given])]
        return list(dict.fromkeys(names))

    def one(self, variant: str, precision: str, out: str | None = None) -> ExportOptions:
        """The options of a single export."""
        shared = {entry.name: getattr(self, entry.name) for entry in fields(ExportOptions)}
        return ExportOptions(**{**shared, "variant": variant, "precision": precision, "out": out})


def is_pattern(variant: str) -> bool:
    """Whether a variant is spelled with wildcards; the folder of that very name comes first."""
    return bool(PATTERN & set(variant)) and not Path(variant).exists()
