"""``t5edge build``: engines for a finished bundle, on the device itself or ahead of it; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.commands.result import Result
from exporter.errors import UserError
from exporter.options import BuildOptions
from exporter.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def run(options: BuildOptions, progress: Progress) -> Result:
    """Build every engine asked for; without a target, those that build and run here."""
    from exporter.targets.doctor import engine_targets
    from exporter.targets.tensorrt import build_engines
    from exporter.targets.tensorrt_records import engine_lines

    if not options.bundle:
        raise UserError("build: the bundle is missing; name a folder written by 't5edge export'.")
    targets = options.target or engine_targets()
    if not targets:
        raise UserError("no engine target runs here ('t5edge doctor' says why); name one with --target.")
    built: dict[str, Any] = {
        target: build_engines(
            options.bundle,
            target,
            options.compute_capability,
            no_fuse=options.no_fuse,
            separate_weights=options.separate_weights,
            force=options.force,
            progress=progress,
        )
        for target in dict.fromkeys(targets)
    }

    def show(console: Console) -> None:
        for line in engine_lines(built):
            console.print(line, highlight=False)

    return Result({"bundle": str(Path(options.bundle)), "engines": built}, show)
