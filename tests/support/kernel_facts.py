"""The architecture that the fusion tests share: heads * d_kv is not d_model, depths differ, odd sizes."""

from __future__ import annotations

from dataclasses import replace

from t5edge.bundle.architecture import Architecture

FACTS = Architecture(
    vocab_size=97,
    d_model=40,
    d_kv=8,
    d_ff=56,
    num_heads=3,
    encoder_layers=2,
    decoder_layers=3,
    activation="gelu_tanh",
    gated=True,
    tied=False,
    scale_logits=False,
)


def with_ffn(activation: str, gated: bool) -> Architecture:
    """The same with another FFN."""
    return replace(FACTS, activation=activation, gated=gated)
