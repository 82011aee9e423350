"""mT5 and UMT5 scale their logits exactly where the output layer is tied: the rule of the code that trained them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from t5edge.exporter.checkpoint import open_checkpoint
from t5edge.exporter.reference.whole import build_torch_model

D_MODEL = 64
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "d_model": D_MODEL,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
FAMILIES = {"mt5": (MT5Config, MT5ForConditionalGeneration), "umt5": (UMT5Config, UMT5ForConditionalGeneration)}


@pytest.mark.parametrize("writer", ["4.57.6", "5.23.0"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["mt5", "umt5"])
def test_tied_is_scaled_and_untied_is_not(tmp_path: Path, family: str, tied: bool, writer: str) -> None:
    torch.manual_seed(0)
    config_class, model_class = FAMILIES[family]
    # by its default attention the decoder of UMT5 in transformers 5.17 sees later tokens
    model = model_class(config_class(**SIZES, attn_implementation="eager")).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(101, D_MODEL))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["transformers_version"] = writer
    if writer.startswith("4"):
        config["tie_word_embeddings"] = tied  # transformers 5 says true whatever the truth
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.architecture.tied, checkpoint.architecture.scale_logits) == (tied, tied)
    ids, targets = torch.tensor([[10, 20, 30, 1]]), torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        encoded = model.encoder(input_ids=ids)[0]
        hidden = model.decoder(input_ids=targets, encoder_hidden_states=encoded)[0]
        head = model.shared.weight if tied else model.lm_head.weight
        truth = torch.nn.functional.linear(hidden, head) * (D_MODEL**-0.5 if tied else 1.0)
        found = build_torch_model(checkpoint, torch.float32)(input_ids=ids, decoder_input_ids=targets).logits
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
