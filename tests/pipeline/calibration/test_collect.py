from __future__ import annotations

import numpy as np
import pytest
import torch

from support.quantized_models import Model, tiny_model
from t5edge.bundle.precision import precision
from t5edge.calibration.collect import MAX_ROWS, Sample, collect_inputs
from t5edge.calibration.points import QuantizationPoint, find_points
from t5edge.errors import UserError
from t5edge.exporter.reference.cache import new_cache
from t5edge.exporter.reference.texts import target_mask
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.workload import rows_of


def samples(model: Model, batches, sites) -> dict[str, Sample]:  # type: ignore[no-untyped-def]
    found: dict[str, Sample] = {}
    collect_inputs(model.checkpoint, batches, sites, lambda site, sample: found.__setitem__(site.name, sample))
    return found


def sites_of(model: Model) -> list[QuantizationPoint]:
    return [site for site in find_points(model.graphs(precision("fp32"))) if site.block]


def test_every_site_gets_its_sample(plain: Model) -> None:
    sites = sites_of(plain)
    found = samples(plain, [plain.texts.gate], sites)
    assert set(found) == {site.name for site in sites}
    for site in sites:
        assert found[site.name].rows.shape[1] == site.shape[0]


def test_the_decoder_is_seen_at_every_cached_step(plain: Model) -> None:
    batch = rows_of(plain.texts.gate, slice(-1, None))
    length = int(target_mask(batch.decoder_input_ids, 0).sum())
    site = next(site for site in sites_of(plain) if site.name == "decoder.block.1.wo")
    model = WholeReference(plain.checkpoint, torch.float32).model
    seen: list[torch.Tensor] = []
    model.decoder.block[1].layer[2].DenseReluDense.wo.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cache = new_cache()
    with torch.inference_mode():
        for step in range(length):
            model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
                decoder_input_ids=torch.from_numpy(batch.decoder_input_ids[:, [step]]),
                past_key_values=cache,
                use_cache=True,
            )
    steps = torch.cat([rows[0] for rows in seen])
    rows = samples(plain, [batch], [site])[site.name].rows
    assert len(rows) == length > 3
    assert torch.allclose(rows, steps, atol=1e-4)


def test_padding_is_not_counted(plain: Model) -> None:
    together = plain.texts.gate
    apart = [rows_of(together, slice(row, row + 1)) for row in range(len(together.input_ids))]
    site = next(site for site in sites_of(plain) if site.name == "encoder.block.2.wo")
    padded, alone = (samples(plain, batches, [site])[site.name] for batches in ([together], apart))
    assert len(padded.rows) == len(alone.rows) == together.attention_mask.sum()
    assert torch.allclose(padded.channel_max, alone.channel_max, rtol=1e-4)


def test_many_tokens_are_thinned_but_their_largest_counts() -> None:
    from t5edge.calibration.collect import _sample

    rows = torch.zeros(3 * MAX_ROWS, 2)
    rows[1, 1] = -9.0
    found = _sample([rows])
    assert len(found.rows) == MAX_ROWS
    assert found.channel_max.tolist() == [0.0, 9.0]


def test_not_a_number_names_the_site(tmp_path, plain: Model) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model(tmp_path, "v1.1-tiny")
    real = model.checkpoint.read

    def broken(name: str) -> torch.Tensor:
        tensor = real(name)
        return tensor * np.nan if name == "encoder.block.1.layer.1.DenseReluDense.wi_1.weight" else tensor

    object.__setattr__(model.checkpoint, "read", broken)
    sites = [site for site in sites_of(plain) if site.graph == "encoder"]
    with pytest.raises(UserError, match=r"encoder\.block\.1\.wo holds NaN"):
        samples(model, [plain.texts.gate], sites)
