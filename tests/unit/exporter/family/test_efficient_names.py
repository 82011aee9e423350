"""What the grammar of T5-Efficient names refuses, and why."""

from __future__ import annotations

import pytest

from t5edge.errors import UserError
from t5edge.exporter.family.efficient_names import parse_efficient_name

SIZES = ("tiny", "small")


def test_keys_set_fields() -> None:
    assert parse_efficient_name("t5-efficient-small", SIZES) == ("small", {})
    assert parse_efficient_name("google/t5-efficient-tiny-el8-nl4", SIZES) == (
        "tiny",
        {"encoder_layers": 8, "decoder_layers": 4},
    )
    assert parse_efficient_name("google/flan-t5-small", SIZES) is None


@pytest.mark.parametrize(("number", "value"), [(1000, 1024), (3000, 3072), (12000, 12288), (1536, 1536), (768, 768)])
def test_thousands_mean_1024(number: int, value: int) -> None:
    assert parse_efficient_name(f"t5-efficient-small-ff{number}-dm{number}", SIZES) == (
        "small",
        {"d_ff": value, "d_model": value},
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "t5-efficient-tiny-sh",
            "'sh' stands for heads that share their projections; such checkpoints were never",
        ),
        (
            "t5-efficient-tiny-nl4-skv",
            "'skv' stands for shared keys and values; such checkpoints were never published",
        ),
        ("t5-efficient-huge-nl4", "'huge' is no T5-Efficient size; expected one of tiny, small"),
        (
            "t5-efficient-small-xx4",
            "cannot read '-xx4'; expected each of nl, el, dl, ff, dm, kv, nh at most once",
        ),
        ("t5-efficient-small-nl", "cannot read '-nl'"),
        ("t5-efficient-small-nl0", "cannot read '-nl0'"),
        ("t5-efficient-small-nl4-nl8", "cannot read '-nl8'"),
    ],
)
def test_refusals(name: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_efficient_name(name, SIZES)
    assert str(caught.value).startswith(f"'{name}': {reason}")
