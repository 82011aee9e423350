"""Drawn weights: reproducible one by one, and of a trained model's scale."""

from __future__ import annotations

import pytest
import torch

from support.tiny_models import find_tiny_model, tiny_models
from t5edge.exporter.checkpoint.random_weights import LOGIT_STD, RandomStore

FACTS = find_tiny_model("v1.1-tiny").architecture


def test_a_tensor_depends_on_seed_and_name_only() -> None:
    names = list(FACTS.tensor_shapes())
    forward, backward = RandomStore(FACTS, 7), RandomStore(FACTS, 7)
    first = {name: forward.read(name) for name in names}
    second = {name: backward.read(name) for name in reversed(names)}
    assert all(torch.equal(first[name], second[name]) for name in names)
    assert not torch.equal(first["lm_head.weight"], first["shared.weight"])
    assert not torch.equal(first["shared.weight"], RandomStore(FACTS, 8).read("shared.weight"))


def test_drawing_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    RandomStore(FACTS, 1).read("shared.weight")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("tiny", tiny_models(), ids=lambda tiny: tiny.name)
def test_shapes_and_scales(tiny) -> None:  # type: ignore[no-untyped-def]
    facts = tiny.architecture
    store = RandomStore(facts, 0)
    assert {name: entry.shape for name, entry in store.tensors.items()} == facts.tensor_shapes()
    q = store.read("decoder.block.0.layer.1.EncDecAttention.q.weight")
    assert float(q.std()) == pytest.approx((facts.d_model * facts.d_kv) ** -0.5, rel=0.1)
    bias = store.read("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    assert float(bias.std()) > 0.5
    norm = store.read("decoder.final_layer_norm.weight")
    assert float((norm - 1).std()) == pytest.approx(0.1, rel=0.4)
    assert all(store.read(name).dtype == torch.float32 for name in store.tensors)


@pytest.mark.parametrize("name", ["v1.1-tiny", "umt5-tiny"])
def test_output_layer_gives_logits_of_the_stated_scale(name: str) -> None:
    facts = find_tiny_model(name).architecture
    hidden = torch.nn.functional.normalize(torch.randn(64, facts.d_model), dim=-1) * facts.d_model**0.5
    logits = hidden * facts.logit_scale @ RandomStore(facts, 0).read("lm_head.weight").T
    assert float(logits.std()) == pytest.approx(LOGIT_STD, rel=0.1)
