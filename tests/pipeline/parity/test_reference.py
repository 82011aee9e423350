from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from support.exports import GATED, RELU, Exports
from t5edge.bundle.ports import Limits
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.reference.protocol import MakeReference, Outputs
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.exporter.reference.texts import Batch
from t5edge.exporter.reference.whole import WholeReference, wide_linear
from t5edge.parity.limits import OwnErrors, ceiling
from t5edge.parity.reference import compare_outputs, measure_reference, passes
from t5edge.parity.workload import build_workload


def texts(exports: Exports, tiny: str) -> dict[str, Batch]:
    work = build_workload(exports.checkpoint(tiny), Limits(max_source_length=40, max_target_length=20))
    return work.batches(("texts",))


def outputs(checkpoint: Checkpoint, batch: Batch, dtype: torch.dtype = torch.float32, **options: Any) -> Outputs:
    ((_, found),) = WholeReference(checkpoint, dtype, **options).outputs({"texts": batch}, ("texts",))
    return found


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.mark.parametrize("narrow", [None, "float16", "bfloat16"])
def test_a_narrow_dtype_has_an_error_of_its_own(exports: Exports, narrow: str | None) -> None:
    count = Counter()
    reference = measure_reference(exports.checkpoint(GATED), narrow, texts(exports, GATED), count)
    assert count.calls == passes(narrow)
    if narrow is None:
        assert reference.own_of("texts") is None
        return
    own = reference.own_of("texts")
    assert own is not None
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[narrow]
    assert 0.1 * rounding < own.logits < 20 * rounding
    assert own.hidden < own.position


def test_the_unit_is_the_smaller_error_of_both_ways(exports: Exports) -> None:
    checkpoint, batches = exports.checkpoint(GATED), texts(exports, GATED)
    reference = measure_reference(checkpoint, "float16", batches, Counter())
    exact = reference.outputs["texts"]
    both = [
        compare_outputs(
            outputs(checkpoint, batches["texts"], torch.float16, keep_wo_float32=keep),
            exact,
            batches["texts"],
            checkpoint.architecture.pad_token_id,
        ).own()
        for keep in (False, True)
    ]
    own = reference.own["texts"]
    for entry in fields(OwnErrors):
        assert getattr(own, entry.name) == min(getattr(errors, entry.name) for errors in both)


def test_a_unit_never_exceeds_what_rounding_can_do(exports: Exports) -> None:
    """PyTorch overflows at float16 here; its error then says nothing about what a bundle may lose."""
    store = exports.checkpoint(RELU)._store
    read = store.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read", lambda name: read(name) * (3e4 if name.endswith("wo.weight") else 1))
        checkpoint = exports.checkpoint(RELU)
        checkpoint._store = store
        reference = measure_reference(checkpoint, "float16", texts(exports, RELU), Counter())
    own = reference.own["texts"]
    assert own.logits <= ceiling("float16")
    assert own.hidden <= ceiling("float16")


def test_padding_counts_neither_in_the_source_nor_in_the_target(exports: Exports) -> None:
    checkpoint, batch = exports.checkpoint(GATED), texts(exports, GATED)["texts"]
    exact = outputs(checkpoint, batch)
    pad = checkpoint.architecture.pad_token_id
    assert (batch.attention_mask == 0).any()
    hidden, logits = exact.hidden.copy(), exact.logits.copy()
    hidden[batch.attention_mask == 0] = np.nan
    logits[batch.decoder_input_ids == pad] = np.nan
    logits[:, 0] = exact.logits[:, 0]
    cross = {name: array.copy() for name, array in exact.cross.items()}
    for array in cross.values():
        array.swapaxes(1, 2)[batch.attention_mask == 0] = np.nan
    errors = compare_outputs(type(exact)(hidden, cross, logits), exact, batch, pad)
    assert (errors.hidden, errors.cross, errors.logits.relative) == (0.0, 0.0, 0.0)


def test_cross_keys_and_values_are_projections_of_the_encoder_output(exports: Exports) -> None:
    checkpoint, batch = exports.checkpoint(GATED), texts(exports, GATED)["texts"]
    found = outputs(checkpoint, batch)
    a = checkpoint.architecture
    assert len(found.cross) == 2 * a.decoder_layers
    weight = checkpoint.read("decoder.block.1.layer.1.EncDecAttention.v.weight").numpy()
    expected = (found.hidden @ weight.T).reshape(*batch.input_ids.shape, a.num_heads, a.d_kv).swapaxes(1, 2)
    np.testing.assert_allclose(found.cross["present.1.encoder.value"], expected, atol=1e-4)


def test_generation_works_where_the_depths_differ(exports: Exports) -> None:
    checkpoint, batch = exports.checkpoint(RELU), texts(exports, RELU)["texts"]
    assert checkpoint.architecture.encoder_layers != checkpoint.architecture.decoder_layers
    tokens = WholeReference(checkpoint, torch.float32).generate(
        batch.input_ids[:2], batch.attention_mask[:2], max_new_tokens=4, num_beams=2, do_sample=False
    )
    assert tokens.shape[0] == 2
    assert tokens.dtype == np.int64


@pytest.mark.parametrize("rows", [1, 200])
def test_wide_float16_products_are_pytorchs_own(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, 96, generator=generator).half()
    weight = (torch.randn(64, 96, generator=generator) / 10).half()
    found, expected = wide_linear(weight, x), torch.nn.functional.linear(x, weight)
    assert found.dtype == torch.float16
    exact = torch.nn.functional.linear(x.double(), weight.double())
    assert float((found.double() - exact).norm() / exact.norm()) < 2.0**-11
    assert float((found - expected).double().norm() / exact.norm()) < 2.0**-11


def test_a_checkpoint_broken_in_float32_is_the_users_to_mend(exports: Exports) -> None:
    checkpoint = open_checkpoint(str(exports.root / GATED))
    read: Callable[[str], Any] = checkpoint._store.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint._store, "read", lambda name: read(name) * (float("nan") if "final" in name else 1))
        with pytest.raises(UserError, match="gives NaN or infinity in float32 PyTorch"):
            measure_reference(checkpoint, None, texts(exports, GATED), Counter())


@pytest.mark.parametrize("tiny", [GATED, RELU])
@pytest.mark.parametrize("narrow", [None, "float16", "bfloat16"])
def test_one_block_at_a_time_is_the_whole_model(exports: Exports, tiny: str, narrow: str | None) -> None:
    """The same outputs, and at 16 bits the same unit of error."""
    checkpoint, batches = exports.checkpoint(tiny), texts(exports, tiny)
    makers: tuple[MakeReference, ...] = (WholeReference, StreamedReference)
    whole, streamed = (measure_reference(checkpoint, narrow, batches, Counter(), make) for make in makers)
    errors = compare_outputs(streamed.outputs["texts"], whole.outputs["texts"], batches["texts"], 0)
    assert max(errors.hidden, errors.cross, errors.logits.relative) < 1e-6
    assert set(streamed.outputs["texts"].cross) == set(whole.outputs["texts"].cross)
    own = (whole.own_of("texts"), streamed.own_of("texts"))
    for entry in fields(OwnErrors) if narrow else ():
        assert getattr(own[1], entry.name) == pytest.approx(getattr(own[0], entry.name), rel=0.2)
