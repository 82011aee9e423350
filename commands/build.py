"""``t5edge build``: engines for a finished bundle, on the device itself or ahead of it; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.bundle.manifest import PORTABLE_OPSET, Manifest
from t5edge.bundle.schema import plain
from t5edge.commands.result import Result
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class BuildOptions:
    """What ``build`` takes: engines for a bundle, on the device or ahead of it."""

    bundle: str = option("a bundle written by export", "", positional=True)
    target: tuple[str, ...] = option(
        "tensorrt or tensorrt-rtx; may be given several times", (), metavar="T", repeat=True
    )
    compute_capability: tuple[str, ...] = option(
        "GPU generation of tensorrt-rtx engines, such as 8.6; may be given several times (default: this machine's GPU)",
        (),
        metavar="CC",
        repeat=True,
    )
    no_fuse: bool = option("plain instead of fused attention, for a defective fused kernel", False)
    separate_weights: bool = option(
        "engines read their matrices from weights.safetensors instead of holding them", False
    )
    force: bool = option("build again what is up to date", False)
    dry_run: bool = option("say what would be built, and stop", False)


def run(options: BuildOptions, progress: Progress) -> Result:
    """Build every engine asked for; without a target, those that build and run here."""
    from t5edge.engines.doctor import engine_targets
    from t5edge.engines.guards import check_form
    from t5edge.runtime.tensorrt.flavor import load_tensorrt
    from t5edge.runtime.tensorrt.records import engine_lines
    from t5edge.tools.sweep.command_line import export_command

    if not options.bundle:
        raise UserError("build: the bundle is missing; name a folder written by 't5edge export'.")
    targets = options.target or engine_targets()
    if not targets:
        raise UserError("no engine target runs here ('t5edge doctor' says why); name one with --target.")
    tools, manifest = [load_tensorrt(target) for target in targets], Manifest.read(Path(options.bundle))
    again = export_command(manifest, opset=PORTABLE_OPSET)
    for tool in tools:
        check_form(tool, manifest.portable, f"export it again: {again}")
    if options.dry_run:
        return _dry_run(options, targets, progress)
    from t5edge.engines.build import build_engines

    built = {
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

    return Result({"bundle": str(Path(options.bundle)), "engines": plain(built)}, show)


def _dry_run(options: BuildOptions, targets: Sequence[str], progress: Progress) -> Result:
    """Each engine that would be built, and what it would replace."""
    from t5edge.engines.build import BuildSettings, plan_engines

    settings = BuildSettings(options.compute_capability, options.no_fuse, options.separate_weights, options.force)
    folder = Path(options.bundle)
    plans = [plan for target in dict.fromkeys(targets) for plan in plan_engines(folder, target, settings, progress)]

    def show(console: Console) -> None:
        for plan in plans:
            state = "up to date" if plan.kept else "would be built"
            if plan.replaces is not None and not plan.kept:
                state += f", in place of {plan.replaces / 1e6:.1f} MB"
            console.print(f"{plan.file}  {state}", highlight=False, soft_wrap=True, markup=False)

    return Result({"bundle": str(folder), "dry_run": True, "engines": [plain(plan) for plan in plans]}, show)
