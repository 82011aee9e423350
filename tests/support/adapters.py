"""PEFT adapters of tiny models, saved by peft itself; and what peft makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch

from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.reference.whole import build_torch_model

EVERY_LINEAR = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")


def base_model(folder: Path) -> Any:
    """The float32 model of a checkpoint, in memory of its own."""
    model = build_torch_model(open_checkpoint(str(folder)), torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def save_adapter(base: Path, folder: Path, config: peft.PeftConfig, seed: int = 0) -> Path:
    """An adapter of ``base`` as if trained: every number of it is drawn."""
    config.base_model_name_or_path = str(base)
    model = peft.get_peft_model(base_model(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spread = 0.3 if "magnitude" in name or "ia3" in name or "norm" in name else 0.1
                noise = torch.empty_like(parameter).normal_(0, spread, generator=generator)
                parameter.copy_(parameter + noise if spread == 0.3 else noise)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


def unmerged(base: Path, *adapters: Path) -> Any:
    """The model with its adapters as they were trained: merged are only those before the last."""
    model = base_model(base)
    for adapter in adapters[:-1]:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return peft.PeftModel.from_pretrained(model, adapters[-1]).eval()


def merged(base: Path, *adapters: Path) -> Any:
    return unmerged(base, *adapters).merge_and_unload().eval()


def example_ids(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a source [2, 9] and a target [2, 5]."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(3, vocab_size, (2, length), generator=generator) for length in (9, 5))  # type: ignore[return-value]


def logits(model: Any, vocab_size: int) -> torch.Tensor:
    """Float32 [2, 5, vocab] on fixed ids."""
    ids, targets = example_ids(vocab_size)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=targets).logits
