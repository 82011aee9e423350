"""Encoder-only checkpoints as transformers saves them, and what transformers makes of ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from support.shared import once
from support.tiny_models import find_tiny_model
from t5edge import pipeline

RELU, GATED, PER_LAYER_BIAS = "t5-tiny", "v1.1-tiny", "umt5-tiny"
HOT = 3e4
RESIDUAL_WRITERS = ("shared.weight", "embed_tokens.weight", ".o.weight", ".wo.weight")


def encoder_model(name: str, hot: bool = False, **settings: Any) -> Any:
    """A tiny model's T5EncoderModel or UMT5EncoderModel, float32, random weights.

    ``hot``: everything that is added to the residual stream is so large that the stream passes 65504.
    """
    config = {**find_tiny_model(name).config, **settings}
    family = "UMT5" if config["model_type"] == "umt5" else "T5"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}EncoderModel")(getattr(transformers, f"{family}Config")(**config))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("final_layer_norm.weight") or ".layer_norm." in parameter_name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
            if hot and parameter_name.endswith(RESIDUAL_WRITERS):
                parameter.mul_(HOT / float(parameter.abs().max()))
    return model.eval()


def save_encoder(name: str, folder: Path, hot: bool = False) -> Path:
    encoder_model(name, hot).save_pretrained(folder)
    return folder


Bundles = Callable[..., Path]
"""Of a tiny model's name and a precision, an unverified bundle of its encoder; without a precision the checkpoint."""


def encoder_bundles(root: Path) -> Bundles:
    """What the fixture ``encoders`` gives: everything is made once, in ``root``."""

    def bundle(name: str, precision: str | None = None, hot: bool = False) -> Path:
        stem = f"{name}-hot" if hot else name
        checkpoint = once(root / stem, lambda folder: save_encoder(name, folder, hot))
        if precision is None:
            return checkpoint

        def make(out: Path) -> None:
            pipeline.export(str(checkpoint), precision, out=out, target=("onnxruntime",), no_verify=True)

        return once(root / f"{stem}-{precision}", make)

    return bundle


def example(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask int64 [3, 33]; two rows are padded."""
    ids = np.random.default_rng(0).integers(3, vocab_size, (3, 33))
    mask = np.ones_like(ids)
    mask[1, 20:] = mask[2, 1:] = 0
    return np.where(mask == 1, ids, 0), mask


def hidden_states(model: Any, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Float32 [batch, source, d_model] of transformers."""
    given = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
    with torch.inference_mode():
        found: np.ndarray = model(input_ids=torch.from_numpy(ids), **given).last_hidden_state.float().numpy()
    return found
