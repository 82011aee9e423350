"""Checkpoints as transformers itself loads them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any


def transformers_model(folder: Path, model_type: str, **options: Any) -> Any:
    """The model of a checkpoint folder by transformers' own ``from_pretrained``, with eager attention."""
    import transformers

    classes: dict[str, Any] = {
        "t5": transformers.T5ForConditionalGeneration,
        "mt5": transformers.MT5ForConditionalGeneration,
        "umt5": transformers.UMT5ForConditionalGeneration,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return classes[model_type].from_pretrained(folder, attn_implementation="eager", **options).eval()
