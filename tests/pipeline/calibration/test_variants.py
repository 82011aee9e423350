from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.exports import RELU, Exports
from support.prompts import prompt_config, save_prompt
from support.quantized_models import Model
from t5edge.bundle.precision import precision
from t5edge.calibration.plan import Settings, make_plan, plan_roundings
from t5edge.calibration.points import EMBEDDING, OUTPUT
from t5edge.calibration.variants import Divergence, _Run, measure_variants
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.exporter.reference.texts import Batch
from t5edge.progress import Silent
from t5edge.runtime.tokenizer import pad


def close(left: Divergence, right: Divergence) -> bool:
    return left.kl == pytest.approx(right.kl, rel=1e-3, abs=1e-9) and left.positions == right.positions


@pytest.mark.parametrize("bound", ["MAX_BYTES", "HIDDEN_BYTES"])
def test_variants_side_by_side_diverge_as_they_do_alone(
    plain: Model, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time through each layer, and one in a pass."""
    row, texts = precision("int8"), plain.texts
    plan = make_plan(plain.checkpoint, plain.graphs(row), row, texts, Silent(), Settings(gate=False))
    names = [EMBEDDING, "encoder.block.1.wo", "decoder.block.1.cross_kv", "decoder.block.0.qkv", OUTPUT]
    variants = [frozenset(), *(frozenset({name}) for name in names), frozenset(names)]
    roundings = plan_roundings(plan.points, row, plan.choices)
    together = measure_variants(plain.checkpoint, texts.gate, plan.points, roundings, variants)
    monkeypatch.setattr(f"t5edge.calibration.variants.{bound}", 1)
    apart = measure_variants(plain.checkpoint, texts.gate, plan.points, roundings, variants)
    assert together[0].kl == pytest.approx(0, abs=1e-9)
    assert together[0].top1 == 1
    assert all(found.kl > 1e-6 for found in together[1:])
    assert all(close(left, right) for left, right in zip(together, apart, strict=True))
    assert together[-1].kl > max(found.kl for found in together[1:-1])


@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4-weight"])
def test_the_simulation_predicts_the_bundle(plain: Model, name: str) -> None:
    row = precision(name)
    folder, plan = plain.bundle(f"predicted-{name}", row, Settings(gate=False))
    roundings = plan_roundings(plan.points, row, plan.choices)
    (predicted,) = measure_variants(plain.checkpoint, plain.texts.gate, plan.points, roundings, [frozenset(roundings)])
    measured = float(plain.errors(folder).kl.mean())
    assert 0.5 < measured / predicted.kl < 2, "onnxruntime rounds the inputs of MatMulNBits too, by blocks"


@pytest.mark.parametrize(("limit", "passes"), [(1.0, 3), (0.0, 4)])
def test_a_checkpoint_is_read_four_times_at_most(
    plain: Model, limit: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges, sensitivity and the gate; once more where the gate fails with all points rounded."""
    counts = Counter[str]()
    read = plain.checkpoint.read
    monkeypatch.setattr(plain.checkpoint, "read", lambda name: counts.update([name]) or read(name))
    monkeypatch.setattr("t5edge.calibration.placement.SHARE", limit)
    row = replace(precision("int8-weight"), max_kl=10.0 if limit else 1.0)
    make_plan(plain.checkpoint, plain.graphs(row), row, plain.texts, Silent(), Settings(smooth=False))
    name = "decoder.block.1.layer.2.layer_norm.weight"
    assert counts[name] == passes - 1, "weights alone need no ranges"


@pytest.mark.parametrize("bytes_at_once", [None, 1])
def test_rows_begin_with_their_learnt_prefixes(
    exports: Exports, tmp_path: Path, bytes_at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoder states of two variants that round nothing, in one batch or one after the other, are the reference's."""
    if bytes_at_once:
        monkeypatch.setattr("t5edge.calibration.variants.MAX_BYTES", bytes_at_once)
    exports.checkpoint(RELU)
    base = exports.root / RELU
    prefixes = [
        f"p{tokens}={save_prompt(base, tmp_path / str(tokens), prompt_config('prefix', base, tokens))}"
        for tokens in (4, 7)
    ]
    checkpoint = open_checkpoint(str(base), prompts=prefixes)
    random = np.random.default_rng(0)
    sources = [[front, *random.integers(3, 90, size)] for front, size in ((-1, 5), (-2, 9), (-2, 3))]
    batch = Batch(*pad(sources, 0), random.integers(3, 90, (3, 6)))
    variants = [frozenset({"encoder.block.0.qkv"}), frozenset({"encoder.block.0.wo"})]
    run = _Run(checkpoint, batch, [], {}, variants, 0.0, None)
    encoded = run._stack("encoder", batch.input_ids, None)
    decoded = run._stack("decoder", batch.decoder_input_ids, encoded)
    reference = StreamedReference(checkpoint, torch.float32)
    expected = reference.decode(batch, reference.encode(batch))
    torch.testing.assert_close(decoded, expected.repeat(3, 1, 1))
    alone = StreamedReference(open_checkpoint(str(base)), torch.float32)
    plain = Batch(np.maximum(batch.input_ids, 0), batch.attention_mask, batch.decoder_input_ids)
    assert not torch.allclose(expected, alone.decode(plain, alone.encode(plain)), atol=1e-2)
