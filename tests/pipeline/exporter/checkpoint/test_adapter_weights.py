"""Shapes that make a change of a weight; the numbers are compared with peft in ``test_adapters``."""

from __future__ import annotations

import pytest
import torch

from t5edge.exporter.checkpoint import adapter_weights
from t5edge.exporter.checkpoint.adapter_weights import fits, merge

LORA = {"lora_A": (2, 6), "lora_B": (4, 2)}


@pytest.mark.parametrize(
    ("kind", "shapes", "weight", "fit"),
    [
        ("LORA", LORA, (4, 6), True),
        ("LORA", LORA, (6, 4), False),
        ("LORA", {**LORA, "lora_magnitude_vector": (4,)}, (4, 6), True),
        ("LORA", {**LORA, "lora_magnitude_vector": (6,)}, (4, 6), False),
        ("LORA", {"lora_A": (2, 6)}, (4, 6), False),
        ("LORA", {"lora_A": (3, 6), "lora_B": (4, 3)}, (4, 6), False),
        ("LORA", {**LORA, "weight": (4, 6)}, (4, 6), False),
        ("LORA", LORA, (24,), False),
        ("LORA", {"weight": (24,)}, (24,), True),
        ("LORA", {"weight": (5, 6)}, (4, 6), False),
        ("IA3", {"ia3_l": (4, 1)}, (4, 6), True),
        ("IA3", {"ia3_l": (1, 6)}, (4, 6), True),
        ("IA3", {"ia3_l": (6, 1)}, (4, 6), False),
        ("LOKR", {"lokr_w1": (2, 2), "lokr_w2": (2, 3)}, (4, 6), True),
        ("LOKR", {"lokr_w1": (2, 2), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 3)}, (4, 6), True),
        ("LOKR", {"lokr_w1": (2, 2), "lokr_w2": (2, 2)}, (4, 6), False),
        ("LOKR", {"lokr_w1": (2, 2)}, (4, 6), False),
        ("LOHA", {"hada_w1_a": (4, 2), "hada_w1_b": (2, 6)}, (4, 6), False),
    ],
)
def test_shapes(kind: str, shapes: dict[str, tuple[int, ...]], weight: tuple[int, ...], fit: bool) -> None:
    assert fits(kind, shapes, weight, 2) is fit


def test_a_weight_that_is_mapped_is_not_written_to() -> None:
    weight = torch.ones(4, 6)
    parts = {"lora_A": torch.ones(2, 6), "lora_B": torch.ones(4, 2), "lora_magnitude_vector": torch.ones(4)}
    merge("LORA", weight, parts, 0.5)
    merge("IA3", weight, {"ia3_l": torch.full((4, 1), 3.0)}, 1.0)
    assert torch.equal(weight, torch.ones(4, 6))


def test_some_rows_at_a_time_or_all_and_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rounding of a float64 sum nothing is left but one rounding to float32."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape).normal_(generator=draw)

    weight = normal(152, 106)
    lora = {"lora_A": normal(5, 106), "lora_B": normal(152, 5), "lora_magnitude_vector": normal(152)}
    lokr = {"lokr_w1": normal(8, 2), "lokr_w2_a": normal(19, 3), "lokr_w2_b": normal(3, 53)}
    loha = {f"hada_w{side}_a": normal(152, 3) for side in (1, 2)}
    loha |= {f"hada_w{side}_b": normal(3, 106) for side in (1, 2)}
    for kind, parts in (("LORA", lora), ("LOKR", lokr), ("LOHA", loha)):
        whole = merge(kind, weight, parts, 1.5)
        for numbers, threads in ((1, 1), (106 * 7, 1), (1 << 22, 4)):
            monkeypatch.setattr(adapter_weights, "NUMBERS_AT_A_TIME", numbers)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            found = merge(kind, weight, parts, 1.5)
            torch.set_num_threads(before)
            assert torch.equal(found, whole), (kind, numbers, threads)
