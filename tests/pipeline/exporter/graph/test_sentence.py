from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from t5edge.bundle.records import ACTIVATIONS, SentenceFacts, SentenceStep
from t5edge.exporter.graph.sentence import OPERATORS, sentence_embedding
from t5edge.kernels.values import as_int64, constant_value
from t5edge.kernels.weights import PlannedTensor

SIZE, OUT = 6, 4
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(4, 5, SIZE)).astype(np.float32)
RIGHT = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
LEFT = RIGHT[:, ::-1].copy()
WEIGHTS = {
    "sentence.2.weight": RANDOM.normal(size=(OUT, SIZE)).astype(np.float32),
    "sentence.2.bias": RANDOM.normal(size=OUT).astype(np.float32),
}
MODES = ("mean", "max", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")


def run(facts: SentenceFacts, mask: np.ndarray, hidden: np.ndarray = HIDDEN) -> np.ndarray:
    """The nodes alone in ONNX Runtime, weights and constants as initializers."""
    import onnxruntime

    tape = ir.tape.Tape()
    states = ir.val("hidden", ir.DataType.FLOAT, ("batch", "source", SIZE))
    given = ir.val("mask", ir.DataType.INT64, ("batch", "source"))
    length = tape.op(
        "Squeeze", [tape.op("Shape", [given], {"start": 1, "end": 2}), constant_value(as_int64(0), "zero")]
    )
    found = sentence_embedding(tape, states, SIZE, given, length, facts)
    found.name, found.type, found.shape = "embedding", ir.TensorType(ir.DataType.FLOAT), ir.Shape(("batch", None))
    constants: dict[str, ir.Value] = {}
    for node in tape.nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None:
                continue
            tensor: Any = value.const_value
            if isinstance(tensor, PlannedTensor):
                tensor = ir.tensor(WEIGHTS[tensor.expression.key])
            name = f"constant_{len(constants)}"
            constants[name] = ir.val(name, const_value=ir.tensor(tensor.numpy(), name=name))
            node.replace_input_with(index, constants[name])
    graph = ir.Graph(
        [states, given],
        [found],
        nodes=tape.nodes,
        initializers=list(constants.values()),
        opset_imports={"": 23},
        name="pooling",
    )
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    (embedding,) = onnxruntime.InferenceSession(data).run(None, {"hidden": hidden, "mask": mask})
    return np.asarray(embedding)


def pooled_by_the_library(mode: Any, mask: np.ndarray, prompt_length: int = 0) -> np.ndarray:
    from sentence_transformers.sentence_transformer.modules import Pooling

    features = {"token_embeddings": torch.from_numpy(HIDDEN), "attention_mask": torch.from_numpy(mask)}
    features |= {"prompt_length": prompt_length} if prompt_length else {}
    found = Pooling(SIZE, mode, include_prompt=not prompt_length)(features)["sentence_embedding"]
    return np.asarray(found.numpy())


@pytest.mark.parametrize("mask", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("mode", MODES)
def test_every_pooling_is_the_library_s(mode: str, mask: np.ndarray) -> None:
    found = run(SentenceFacts((mode,), (), SIZE), mask)
    np.testing.assert_allclose(found, pooled_by_the_library(mode, mask), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_is_left_out_on_request(mode: str) -> None:
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    marked = mask * np.where(np.arange(5) < 2, 2, 1)
    found = run(SentenceFacts((mode,), (), SIZE, include_prompt=False), marked)
    np.testing.assert_allclose(found, pooled_by_the_library(mode, mask, prompt_length=2), atol=1e-6)


def test_several_poolings_stand_side_by_side() -> None:
    modes = ("max", "mean", "cls")
    found = run(SentenceFacts(modes, (), 3 * SIZE), RIGHT)
    np.testing.assert_allclose(found, pooled_by_the_library(modes, RIGHT), atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_dense_layers_and_length_one(activation: str | None, bias: bool) -> None:
    steps = (SentenceStep("dense", OUT, "sentence.2.", bias, activation), SentenceStep("normalize", OUT))
    found = run(SentenceFacts(("mean",), steps, OUT), RIGHT)
    pooled = torch.from_numpy(pooled_by_the_library("mean", RIGHT))
    weight, own = (torch.from_numpy(WEIGHTS[f"sentence.2.{name}"]) for name in ("weight", "bias"))
    expected = torch.nn.functional.linear(pooled, weight, own if bias else None)
    expected = expected if activation is None else getattr(torch.nn, activation)()(expected)
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=-1).numpy(), atol=3e-6)


def test_a_text_without_direction_stays_zero() -> None:
    found = run(SentenceFacts(("mean",), (SentenceStep("normalize", SIZE),), SIZE), RIGHT, np.zeros_like(HIDDEN))
    assert not found.any()


def test_every_activation_has_its_operator() -> None:
    assert set(OPERATORS) == set(ACTIVATIONS)
