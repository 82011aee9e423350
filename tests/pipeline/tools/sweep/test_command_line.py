"""Flags made from options, read back by the parser of the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from t5edge.cli import build_parser
from t5edge.errors import UserError
from t5edge.exporter.reference.texts import Example
from t5edge.options import ExportOptions
from t5edge.tools.sweep.command_line import export_arguments
from t5edge.tools.sweep.jobs import Job
from t5edge.tools.sweep.options import SweepOptions

PLAIN = ExportOptions(variant="t5-demo")
OTHER: dict[str, Any] = {
    "variant": "-odd name/*",
    "precision": "int8",
    "target": ("onnxruntime", "tensorrt-rtx"),
    "random_weights": -1,
    "revision": "--json",
    "calibration": "some texts.jsonl",
    "observer": "mse",
    "compute": "fp16",
    "compute_capability": ("8.6", "12.0"),
    "cache": "both",
    "layout": "optimum",
    "opset": 17,
    "max_batch": 3,
    "max_source_length": 77,
    "max_target_length": 78,
    "adapter": ("an adapter", "another"),
    "prompt": ("a name=a prompt", "another"),
    "vocabulary": "a corpus.txt",
    "vocabulary_floor": 3,
    "languages": ("de", "sr-Latn"),
    "texts": "judged.jsonl",
    "time_budget": 30.0,
    "task": "encode",
    "subfolder": "text_encoder_2",
}
"""A value for every option that has no other than its default; switches are turned on."""


def read_back(options: ExportOptions) -> ExportOptions:
    """Through the command line of a job."""
    given = vars(build_parser().parse_args(export_arguments(Job("name", "s3://out", options, 0))))
    assert (given.pop("command"), given.pop("json")) == ("export", True)
    read = SweepOptions(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    assert (read.out, read.jobs, read.ray, read.is_sweep) == ("s3://out", 1, None, True)
    return read.one(read.variant[0], read.precisions[0])


@pytest.mark.parametrize("name", [entry.name for entry in fields(ExportOptions) if entry.name != "out"])
def test_every_option_comes_back(name: str) -> None:
    assert read_back(PLAIN) == PLAIN
    value = OTHER.get(name, True)
    needed = {"vocabulary": "a corpus.txt"} if name == "vocabulary_floor" else {}
    options = ExportOptions(**{"variant": "t5-demo", **needed, name: value})
    assert getattr(options, name) != getattr(PLAIN, name)
    assert read_back(options) == options


def test_the_command_line_names_what_differs_from_the_defaults(tmp_path: Path) -> None:
    job = Job("t5-demo-fp16", str(tmp_path), ExportOptions(variant="t5-demo", precision="fp16", force=True), 0)
    wanted = ["export", "--variant=t5-demo", "--precision=fp16", f"--out={tmp_path}", "--force", "--jobs=1", "--json"]
    assert export_arguments(job) == wanted


def test_texts_given_as_objects_have_no_flag() -> None:
    options = ExportOptions(variant="t5-demo", calibration=(Example("a", None),))
    with pytest.raises(UserError, match=r"--calibration holds objects, .* name a file instead"):
        export_arguments(Job("name", "out", options, 0))
