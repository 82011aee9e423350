"""The sublayers add up to transformers' blocks, and rounding costs what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.bundle.architecture import Stack
from t5edge.bundle.precision import precision
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.exporter.reference.texts import Encoder, bundled_examples
from t5edge.parity.localize.sublayers import LayerRun, SublayerReference, round_block, round_embedding, round_weight


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(str(save_tiny_model(find_tiny_model("umt5-tiny"), tmp_path / "byt5", seed=1)))


def test_sublayers_are_the_blocks(checkpoint: Checkpoint) -> None:
    batch = Encoder(checkpoint.architecture, None).batch(bundled_examples()[:2])
    seen: list[tuple[Stack, int, int]] = []

    def look(stack: Stack, layer: int, run: LayerRun) -> None:
        seen.append((stack, layer, len(run.steps)))
        for step, following in zip(run.steps, run.steps[1:], strict=False):
            assert step.out is following.hidden

    ours = SublayerReference(checkpoint, torch.float32, on_layer=look)
    plain = StreamedReference(checkpoint, torch.float32)
    encoded = plain.encode(batch)
    assert torch.equal(ours.encode(batch), encoded)
    assert torch.equal(ours.decode(batch, encoded), plain.decode(batch, encoded))
    assert seen == [("encoder", i, 2) for i in range(3)] + [("decoder", i, 3) for i in range(2)]


def test_a_rerun_in_float32_changes_nothing_and_at_16_bits_a_little(checkpoint: Checkpoint) -> None:
    batch = Encoder(checkpoint.architecture, None).batch(bundled_examples()[:2])
    errors: list[float] = []

    def look(stack: Stack, layer: int, run: LayerRun) -> None:
        for (added, out), step in zip(run.rerun(), run.steps, strict=True):
            assert torch.equal(added, step.added)
            assert torch.equal(out, step.out)
        round_block(run.block, precision("fp16"))
        for (added, _), step in zip(run.rerun(), run.steps, strict=True):
            assert added.dtype == torch.float16
            errors.append(float((added.float() - step.added).norm() / step.added.norm()))

    reference = SublayerReference(checkpoint, torch.float32, on_layer=look)
    reference.decode(batch, reference.encode(batch))
    assert 1e-5 < min(errors) < max(errors) < 5e-3


def test_keys_and_values_have_heads(checkpoint: Checkpoint) -> None:
    batch = Encoder(checkpoint.architecture, None).batch(bundled_examples()[:2])
    shapes = []

    def look(stack: Stack, layer: int, run: LayerRun) -> None:
        shapes.append([tuple(half.shape) for cross in (False, stack == "decoder") for half in run.keys_values(cross)])

    reference = SublayerReference(checkpoint, torch.float32, on_layer=look)
    reference.decode(batch, reference.encode(batch))
    source, target = batch.input_ids.shape[1], batch.decoder_input_ids.shape[1]
    heads = checkpoint.architecture.num_heads
    assert shapes[0] == [(2, heads, source, 64)] * 4
    assert shapes[-1] == [(2, heads, target, 64)] * 2 + [(2, heads, source, 64)] * 2


@pytest.mark.parametrize(("name", "steps"), [("int8-weight", 127), ("int4-weight", 7)])
def test_weights_are_rounded_to_the_rows_integers(name: str, steps: int) -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    rounded = round_weight(weight, precision(name))
    assert rounded.shape == weight.shape
    assert float((rounded - weight).abs().max()) <= float(weight.abs().max()) / steps / 2 * 1.001
    assert len(rounded[0].unique()) <= 2 * (2 * steps + 1)
    assert not torch.equal(rounded, weight)


def test_embeddings_are_rounded_wherever_anything_is() -> None:
    rows = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_embedding(rows, precision("fp32")), rows)
    rounded = round_embedding(rows, precision("int4-weight"))
    error = (rounded - rows).abs().amax(dim=1)
    assert bool((error <= rows.abs().amax(dim=1) / 127 / 2 * 1.001).all())


def test_quantized_activations_are_rounded_too(checkpoint: Checkpoint) -> None:
    run_inputs: list[torch.Tensor] = []

    def look(stack: Stack, layer: int, run: LayerRun) -> None:
        if (stack, layer) == ("encoder", 0):
            round_block(run.block, precision("int8"))
            run.block.layer[0].SelfAttention.q.register_forward_hook(lambda _, args, __: run_inputs.append(args[0]))
            run.rerun()

    batch = Encoder(checkpoint.architecture, None).batch(bundled_examples()[:2])
    SublayerReference(checkpoint, torch.float32, on_layer=look).encode(batch)
    assert len(run_inputs[0].unique()) <= 255
