"""The table against the cards, and names as users type them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from t5edge.errors import UserError
from t5edge.exporter.family.variants import (
    CARD_TOLERANCE,
    DEMO_NAME,
    efficient_architecture,
    expand_patterns,
    find_variant,
    look_up_variant,
    suggestion,
    variants,
)

CONTRADICTING = {
    *(f"t5-efficient-tiny-{option}" for option in ("dl2", "dl6", "dl8", "el2", "el6", "el8", "el12")),
    "t5-efficient-tiny-ff2000",
    "t5-efficient-tiny-nh8",
}

PUBLISHED_PARAMETERS = {
    "google-t5/t5-small": 60_506_624,
    "google-t5/t5-base": 222_903_552,
    "google-t5/t5-large": 737_668_096,
    "google-t5/t5-3b": 2_851_598_336,
    "google/flan-t5-small": 76_961_152,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
    "google/mt5-small": 300_176_768,
    "google/mt5-base": 582_401_280,
    "google/byt5-small": 299_637_760,
}
"""As the hub counts the tensors of these checkpoints."""


def test_every_family_has_its_sizes() -> None:
    counts: dict[str, int] = {}
    for row in variants():
        counts[row.family] = counts.get(row.family, 0) + 1
    assert counts == {
        "t5-demo": 1,
        "t5-v1.0": 5,
        "t5-v1.1": 5,
        "t5-lm-adapt": 5,
        "t0": 1,
        "flan-t5": 5,
        "ul2": 1,
        "flan-ul2": 1,
        "mt5": 5,
        "umt5": 4,
        "byt5": 5,
        "t5-efficient": 104,
    }
    assert len({row.name for row in variants()}) == len(variants())


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED_PARAMETERS.items())
def test_parameters_as_published(name: str, parameters: int) -> None:
    assert find_variant(name).parameters == parameters


def test_parameters_of_all_but_nine_cards_are_met() -> None:
    cards = [row for row in variants() if row.card_parameters is not None]
    assert len(cards) == 100
    assert {row.short_name for row in cards if row.contradicts_card} == CONTRADICTING
    for row in cards:
        assert row.card_parameters is not None
        off = abs(row.parameters - row.card_parameters) / row.card_parameters
        assert (off > CARD_TOLERANCE) == (row.short_name in CONTRADICTING), (row.name, off)


def test_a_contradicting_card_carries_both_numbers() -> None:
    row = find_variant("t5-efficient-tiny-nh8")
    assert row.note == "the card counts 15,580,000 parameters, the name gives 18,716,672; config.json decides"


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("t5-small", "google-t5/t5-small"),
        ("flan-t5-base", "google/flan-t5-base"),
        ("t5-efficient-mini", "google/t5-efficient-mini"),
        ("google/t5-efficient-mini", "google/t5-efficient-mini"),
        ("t0pp", "bigscience/T0pp"),
        ("T5-11B", "google-t5/t5-11b"),
        ("umt5-xxl", "google/umt5-xxl"),
    ],
)
def test_short_forms(typed: str, name: str) -> None:
    assert find_variant(typed).name == name


def test_demo_states_its_own_config() -> None:
    facts = find_variant(DEMO_NAME).architecture
    assert facts.encoder_layers != facts.decoder_layers
    assert facts.inner_dim != facts.d_model


def test_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        find_variant("google/t5-efficent-tiny")
    assert str(caught.value) == (
        "'google/t5-efficent-tiny' is not in the table of variants. Did you mean 'google/t5-efficient-tiny'?"
    )
    assert suggestion("flan-t5-bse") == "Did you mean 'google/flan-t5-base'?"
    assert suggestion("meta/llama") == ""
    assert look_up_variant("meta/llama") is None


def test_as_dict_has_the_contracts_keys() -> None:
    row = find_variant("byt5-small").as_dict()
    assert {key: row[key] for key in list(row)[:12]} == {
        "name": "google/byt5-small",
        "family": "byt5",
        "d_model": 1472,
        "d_kv": 64,
        "d_ff": 3584,
        "num_heads": 6,
        "encoder_layers": 12,
        "decoder_layers": 4,
        "ffn": "gated-gelu_tanh",
        "tied": False,
        "vocab_size": 384,
        "parameters": 299_637_760,
    }


def test_config_of_a_row_reads_back_as_the_row() -> None:
    from t5edge.exporter.family.config import architecture_from_config

    for row in variants():
        assert architecture_from_config(row.config()) == row.architecture, row.name


def test_grammar_beyond_the_cards() -> None:
    row = find_variant("t5-efficient-base-nl8-dl2-ff6000-dm1000-kv32-nh24")
    facts = row.architecture
    assert (facts.encoder_layers, facts.decoder_layers) == (8, 2)
    assert (facts.d_ff, facts.d_model, facts.d_kv, facts.num_heads) == (6144, 1024, 32, 24)
    assert row.card_parameters is None
    assert row.note == "no card known; sizes follow the name"
    assert efficient_architecture("google/t5-small") is None


def test_patterns_match_with_and_without_organisation() -> None:
    short, full = expand_patterns(["byt5-*"]), expand_patterns(["google/byt5-*"])
    assert [row.short_name for row in short] == [f"byt5-{size}" for size in ("small", "base", "large", "xl", "xxl")]
    assert short == full
    assert len(expand_patterns(["*"])) == len(variants())
    assert [row.name for row in expand_patterns(["flan-t5-base", "t5-small"])] == [
        "google-t5/t5-small",
        "google/flan-t5-base",
    ]
    assert expand_patterns(["t5-efficient-small-el3"])[0].architecture.encoder_layers == 3


@pytest.mark.parametrize("pattern", ["nothing-*", "t5-smal"])
def test_patterns_without_match_are_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="table"):
        expand_patterns([pattern])


def test_the_table_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, t5edge.exporter.family.variants as v; v.variants(); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
