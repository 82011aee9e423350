"""Stored names to canonical names, without files: a store in memory stands for the checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.tiny_models import find_tiny_model
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.names import DEAD, name_tensors
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.checkpoint.stores import StoredTensor

DEAD_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


class MemoryStore:
    """Tensors in a dict."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state
        self.tensors = {name: StoredTensor(tuple(value.shape), "float32") for name, value in state.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.state[name]

    def same_values(self, first: str, second: str) -> bool:
        return torch.equal(self.state[first], self.state[second])

    def fingerprint(self) -> Any:
        return None


def state_of(name: str) -> dict[str, torch.Tensor]:
    store = RandomStore(find_tiny_model(name).architecture, 0)
    return {tensor: store.read(tensor) for tensor in store.tensors}


def test_canonical_names_map_to_themselves() -> None:
    tiny = find_tiny_model("umt5-tiny")
    named = name_tensors(tiny.config, MemoryStore(state_of(tiny.name)), "here")
    assert named.stored_names == {name: name for name in tiny.architecture.tensor_shapes()}
    assert (named.architecture, named.ignored) == (tiny.architecture, [])


def test_dead_bias_is_dropped_silently_and_a_live_one_is_not() -> None:
    tiny = find_tiny_model("t5-tiny")
    state = {**state_of(tiny.name), DEAD_BIAS: torch.zeros(32, 3)}
    assert DEAD.fullmatch(DEAD_BIAS)
    assert name_tensors(tiny.config, MemoryStore(state), "here").ignored == []
    live = DEAD_BIAS.replace("block.0", "block.1")
    with pytest.raises(UserError, match=f"1 that config.json has no place for: {live}"):
        name_tensors(tiny.config, MemoryStore({**state, live: torch.zeros(32, 3)}), "here")


def test_depth_of_the_config_must_be_the_checkpoints() -> None:
    tiny = find_tiny_model("t5-tiny")
    state = MemoryStore(state_of(tiny.name))
    with pytest.raises(UserError, match=r"that config.json has no place for: encoder.block.2"):
        name_tensors({**tiny.config, "num_layers": 2}, state, "here")
    with pytest.raises(UserError, match=r"8 missing: encoder.block.3.layer.0.SelfAttention.q.weight"):
        name_tensors({**tiny.config, "num_layers": 4}, state, "here")


def test_wrong_head_size_shows_as_shapes() -> None:
    tiny = find_tiny_model("efficient-kv16-tiny")
    with pytest.raises(UserError, match=r"q\.weight is \[48, 72\] instead of \[72, 72\]"):
        name_tensors({**tiny.config, "d_kv": 24}, MemoryStore(state_of(tiny.name)), "here")
