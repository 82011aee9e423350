"""The PyTorch model that a bundle is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.family.config import config_from_architecture

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint


def build_torch_model(checkpoint: Checkpoint, dtype: torch.dtype, *, keep_wo_float32: bool = False) -> Any:
    """The transformers model of the checkpoint in ``dtype``, on the CPU, in eval mode, with eager attention.

    Tying and the scale of the logits follow the checkpoint's facts, not transformers' own reading of the
    config. Weights already stored in ``dtype`` stay mapped from disk. ``keep_wo_float32`` keeps the FFN
    output projections in float32, as transformers' ``from_pretrained`` does for float16.

    Returns:
        ``UMT5ForConditionalGeneration`` when every layer has its own position bias, else
        ``T5ForConditionalGeneration``.
    """
    import torch

    model = build_meta_model(checkpoint.architecture)
    for name in checkpoint.names():
        wanted = torch.float32 if keep_wo_float32 and name.endswith(".wo.weight") else dtype
        _set_weight(model, name, checkpoint.read(name).to(wanted))
    _tie(model, checkpoint.architecture.tied)
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not empty, empty
    model.generation_config = _generation_config(checkpoint.generation_config)
    return model.eval()


def build_meta_model(architecture: Architecture) -> Any:
    """The same model without weights, on the meta device, in eval mode: for tracing and for counting."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, UMT5Config, UMT5ForConditionalGeneration

    per_layer = architecture.per_layer_bias
    config_class: Any
    model_class: Any
    config_class, model_class = (
        (UMT5Config, UMT5ForConditionalGeneration) if per_layer else (T5Config, T5ForConditionalGeneration)
    )
    config = config_class(**config_from_architecture(architecture, "umt5" if per_layer else "t5"))
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = model_class(config)
    # Where forward() looks for the logit scale: T5 has its own flag, UMT5 reads the tying flag.
    setattr(
        model.config,
        "tie_word_embeddings" if per_layer else "scale_decoder_outputs",
        architecture.scale_logits,
    )
    _tie(model, architecture.tied)
    return model.eval()


def _set_weight(model: Any, name: str, tensor: torch.Tensor) -> None:
    """Replaces the parameter called ``name`` by ``tensor`` ``[out, in]``, sharing its memory."""
    import torch

    path, _, leaf = name.rpartition(".")
    old = model.get_parameter(name)
    assert old.shape == tensor.shape, (name, old.shape, tensor.shape)
    setattr(model.get_submodule(path), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def _tie(model: Any, tied: bool) -> None:
    """One embedding table for both stacks, and for the output layer exactly if ``tied``."""
    import torch

    model.encoder.embed_tokens.weight = model.shared.weight
    model.decoder.embed_tokens.weight = model.shared.weight
    if tied:
        model.lm_head.weight = model.shared.weight
    elif model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight), requires_grad=False)


def _generation_config(settings: dict[str, Any]) -> Any:
    import transformers

    make: Any = transformers.GenerationConfig
    return make(**settings)
