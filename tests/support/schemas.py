"""The shipped JSON Schema of the manifest, asked by a validator that is not ours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from support.json_schema import SHIPPED
from t5edge.bundle.files import MANIFEST


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SHIPPED.read_text(encoding="utf-8")))


def schema_problems(data: Any) -> list[str]:
    """Where ``data``, parsed JSON, does not fit the schema, and how."""
    return [f"{error.json_path}: {error.message[:200]}" for error in validator().iter_errors(data)]


def check_written(folder: Path) -> None:
    """The ``bundle.json`` of a folder fits the schema."""
    problems = schema_problems(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    assert problems == [], folder
