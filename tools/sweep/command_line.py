"""The command line of one export, from its options: the inverse of the parser in ``cli``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from t5edge.errors import UserError
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
