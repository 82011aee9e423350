"""The command line of one export, from its options: the inverse of the parser in ``cli``."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from typing import Any

from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.options import TEXT_FILES, ExportOptions
from t5edge.tools.sweep.jobs import Job


def flags(options: Any) -> list[str]:
    """``--name=value`` for every field of an options dataclass that is not at its default.

    Raises:
        UserError: a value that no flag can carry, such as calibration texts given as objects.
    """
    found: list[str] = []
    for entry in fields(options):
        value, flag = getattr(options, entry.name), "--" + entry.name.replace("_", "-")
        values = value if isinstance(value, tuple) else (value,)
        if value is True:
            found.append(flag)
        elif value != entry.default:
            if not all(isinstance(one, (str, int, float)) for one in values):
                raise UserError(f"{flag} holds objects, and the exports of a sweep are processes; name a file instead.")
            found += [f"{flag}={one}" for one in values]
    return found


def export_arguments(job: Job) -> list[str]:
    """What follows ``t5edge``: ``--jobs`` makes it a sweep of one export, which keeps, uploads and reports as any."""
    return ["export", *flags(replace(job.options, out=job.out)), "--jobs=1", "--json"]


def export_command(manifest: Manifest, **changes: Any) -> str:
    """The command that a bundle was made with, with ``changes``; FILE stands for texts, of which it has the hash."""
    names = {entry.name for entry in fields(ExportOptions)}
    known = {name: value for name, value in (manifest.options or {}).items() if name in names}
    known |= {name: "FILE" for name in TEXT_FILES if known.get(name)}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()} | changes
    options = ExportOptions(**{**known, "variant": manifest.variant, "precision": manifest.precision.name})
    return shlex.join(["t5edge", "export", *flags(options)])
