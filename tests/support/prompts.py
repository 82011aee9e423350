"""Learnt prompts of tiny models, saved by peft itself; and what peft makes of ids with one in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from support.adapters import base_model

TASK = "SEQ_2_SEQ_LM"


def prompt_config(kind: str, base: Path, tokens: int, **settings: Any) -> peft.PeftConfig:
    """The config of a prompt of ``tokens`` virtual tokens; ``kind``: prompt, p or prefix."""
    from t5edge.exporter.checkpoint.open import open_checkpoint

    a = open_checkpoint(str(base)).architecture
    given = {"task_type": TASK, "num_virtual_tokens": tokens, "base_model_name_or_path": str(base), **settings}
    if kind == "prompt":
        return peft.PromptTuningConfig(**given)
    if kind == "p":
        return peft.PromptEncoderConfig(**{"encoder_hidden_size": 24, **given})
    sizes = {"token_dim": a.inner_dim, "num_attention_heads": a.num_heads, "num_layers": a.decoder_layers}
    return peft.PrefixTuningConfig(**{**sizes, **given})


def save_prompt(base: Path, folder: Path, config: peft.PeftConfig, seed: int = 0, scale: float = 1.0) -> Path:
    """A prompt of ``base`` as if trained: every number of it is drawn."""
    model = peft.get_peft_model(base_model(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.normal_(0, scale, generator=generator)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


def prompted(base: Path, prompt: Path) -> Any:
    """The model with a prompt, as peft loads it."""
    return peft.PeftModel.from_pretrained(base_model(base), prompt).eval()


def peft_logits(model: Any, ids: np.ndarray, mask: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Float32 [batch, target, vocab], teacher-forced in one pass."""
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets}
    with torch.inference_mode():
        found: np.ndarray = model(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
    return found


def peft_tokens(model: Any, ids: np.ndarray, mask: np.ndarray, **settings: Any) -> np.ndarray:
    """What peft's own ``generate`` gives."""
    found: np.ndarray = model.generate(
        input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **settings
    ).numpy()
    return found
