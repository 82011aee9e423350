"""``t5edge encode``: sentence embeddings of texts, or the hidden states of an encoder; loads no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.commands.generate import read_lines
from t5edge.commands.result import Result, shown
from t5edge.errors import UserError
from t5edge.options import option
from t5edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from t5edge.runtime.model import BundleModel


@dataclass(frozen=True)
class EncodeOptions:
    """What ``encode`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    text: tuple[str, ...] = option("texts; '-' or none reads one per line from standard input", (), positional=True)
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    out: str | None = option(
        "file to write: embeddings as one .npy array, hidden states as .npz, arr_0 for the first text",
        None,
        metavar="FILE",
    )
    prompt: str | None = option("put before every text (default: the model's own prompt, if it has one)", None)
    prompt_name: str | None = option("one of the model's own prompts", None, metavar="NAME")


def run(options: EncodeOptions, progress: Progress) -> Result:
    """One vector for each text where the bundle makes them, else hidden states."""
    from t5edge.runtime.model import load

    texts = list(options.text) if options.text and options.text != ("-",) else read_lines(sys.stdin)
    model = load(options.bundle, options.target)
    out = None if options.out is None else Path(options.out)
    if model.manifest.sentence is None:
        return _hidden_states(model, texts, out, options)
    found = model.embed(texts, prompt=options.prompt, prompt_name=options.prompt_name)
    if out is None:
        rows = found.tolist()
        return Result({"embeddings": rows}, lambda console: _print_rows(console, rows))
    with out.open("wb") as file:
        np.save(file, found)
    return _written(out, f"{len(found)} embeddings of {found.shape[1]} numbers", list(found.shape))


def _hidden_states(model: BundleModel, texts: list[str], out: Path | None, options: EncodeOptions) -> Result:
    """Raises: UserError without a file to write, or with a prompt."""
    if options.prompt is not None or options.prompt_name is not None:
        raise UserError(f"'{model.folder}' makes no sentence embeddings, which prompts are for; leave the prompt out.")
    if out is None:
        raise UserError(f"'{model.folder}' gives the hidden states of every token; name a file for them with --out.")
    found = model.encode(texts)
    with out.open("wb") as file:
        np.savez(file, *found)
    return _written(out, f"hidden states of {len(found)} texts", [list(states.shape) for states in found])


def _written(out: Path, what: str, shape: list[Any]) -> Result:
    line = f"{shown(out)}: {what}"
    return Result(
        {"out": str(out), "shape": shape}, lambda console: console.print(line, highlight=False, soft_wrap=True)
    )


def _print_rows(console: Console, rows: list[list[float]]) -> None:
    """A JSON array for each text, a line each."""
    console.file.write("".join(f"{json.dumps(row)}\n" for row in rows))
