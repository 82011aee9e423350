from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from support.bundles import Workshop

CAPACITY = 144
STEPS = 140


class Pair:
    """Both decoder forms of one bundle on ONNX Runtime, fed the same tokens."""

    def __init__(self, folder: Path, batch: int) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # it reports that its own cache update copies
        names = ("encoder", "decoder", "decoder_in_place")
        self.sessions = {name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in names}
        random = np.random.default_rng(batch)
        ids = random.integers(3, 180, (batch, 20))
        self.mask = np.ones_like(ids)
        self.mask[-1, 12:] = 0
        encoded = self.run("encoder", {"input_ids": ids, "attention_mask": self.mask})
        self.cross = {name.replace("present", "past_key_values"): encoded[name] for name in encoded if "." in name}
        own = [port for port in self.sessions["decoder"].get_inputs() if ".decoder." in port.name]
        shape = (batch, own[0].shape[1], 0, own[0].shape[3])
        self.past = {port.name: np.zeros(shape, np.float32) for port in own}
        full = (*shape[:2], CAPACITY, shape[3])
        self.cache = {name: np.zeros(full, np.float32) for name in self.past}
        self.length = 0

    def run(self, name: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = [output.name for output in self.sessions[name].get_outputs()]
        return dict(zip(outputs, self.sessions[name].run(None, feeds), strict=True))

    def step(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the concatenating and of the in-place form."""
        shared = {"input_ids": tokens, "encoder_attention_mask": self.mask, **self.cross}
        grown = self.run("decoder", {**shared, **self.past})
        length = np.array([self.length])
        written = self.run("decoder_in_place", {**shared, **self.cache, "past_length": length})
        self.past = {name: grown[name.replace("past_key_values", "present")] for name in self.past}
        self.cache = {name: written[name.replace("past_key_values", "present")] for name in self.cache}
        self.length += tokens.shape[1]
        return grown["logits"], written["logits"]


def relative(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max() / np.abs(left).max())


@pytest.mark.parametrize("batch", [1, 3])
def test_in_place_logits_are_those_of_the_growing_cache(demo: Workshop, batch: int) -> None:
    pair = Pair(demo.bundle("fp32"), batch)
    tokens = np.random.default_rng(7).integers(3, 180, (batch, STEPS))
    errors = [relative(*pair.step(tokens[:, [column]])) for column in range(STEPS)]
    assert max(errors) < 1e-5
    for name, grown in pair.past.items():
        assert np.abs(grown - pair.cache[name][:, :, :STEPS]).max() < 1e-4
        assert not pair.cache[name][:, :, STEPS:].any()


def test_many_tokens_at_once_are_the_same_as_one_by_one(demo: Workshop) -> None:
    folder = demo.bundle("fp32")
    tokens = np.random.default_rng(8).integers(3, 180, (2, 12))
    whole, single = Pair(folder, 2), Pair(folder, 2)
    _, first = whole.step(tokens[:, :5])
    _, second = whole.step(tokens[:, 5:])
    steps = [single.step(tokens[:, [column]])[1] for column in range(12)]
    assert relative(np.concatenate(steps, axis=1), np.concatenate([first, second], axis=1)) < 1e-5


def test_what_stands_in_unwritten_positions_does_not_matter(demo: Workshop) -> None:
    clean, dirty = Pair(demo.bundle("fp32"), 2), Pair(demo.bundle("fp32"), 2)
    dirty.cache = {name: np.full_like(cache, 3.0) for name, cache in dirty.cache.items()}
    tokens = np.random.default_rng(9).integers(3, 180, (2, 6))
    for column in range(6):
        left, right = (pair.step(tokens[:, [column]])[1] for pair in (clean, dirty))
        assert np.array_equal(left, right)


def test_the_graph_is_opset_24_with_one_update_per_cache(demo: Workshop) -> None:
    folder = demo.bundle("fp16")
    model = onnx.load(folder / "decoder_in_place.onnx", load_external_data=False)
    assert [entry.version for entry in model.opset_import] == [24]
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    assert counts["TensorScatter"] == 2 * demo.checkpoint.architecture.decoder_layers
    assert counts["Attention"] == 2 * demo.checkpoint.architecture.decoder_layers
    onnx.checker.check_model(str(folder / "decoder_in_place.onnx"))


def test_both_forms_share_the_weights_file(demo: Workshop) -> None:
    from t5edge.bundle.manifest import Manifest

    both, one = Manifest.read(demo.bundle("fp16")), Manifest.read(demo.bundle("fp16", "concat"))
    assert both.files["weights.safetensors"] == one.files["weights.safetensors"]
    assert "decoder_in_place.onnx" in both.files
    assert "decoder_in_place.onnx" not in one.files


def test_the_manifest_describes_the_ports(demo: Workshop) -> None:
    from t5edge.bundle.manifest import Manifest

    ports: Any = Manifest.read(demo.bundle("fp16")).ports["decoder_in_place"]
    shapes = {port.name: port.axes for port in (*ports.inputs, *ports.outputs)}
    assert shapes["past_length"] == (1,)
    assert shapes["past_key_values.0.decoder.key"] == ("batch", 8, CAPACITY, 24)
    assert shapes["present.1.decoder.value"] == ("batch", 8, CAPACITY, 24)
    assert shapes["past_key_values.0.encoder.key"] == ("batch", 8, "source", 24)
