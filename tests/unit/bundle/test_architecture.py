"""Facts read from raw configs, as every generation of transformers writes them."""

from __future__ import annotations

import pytest

from t5edge.bundle.architecture import Architecture
from t5edge.errors import UserError
from t5edge.exporter.family.config import architecture_from_config, config_from_architecture

SMALL = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}


def test_first_t5_config_with_its_old_class_name() -> None:
    facts = architecture_from_config({**SMALL, "architectures": ["T5WithLMHeadModel"], "n_positions": 512})
    assert (facts.activation, facts.gated, facts.tied, facts.scale_logits) == ("relu", False, True, True)
    assert facts.decoder_layers == 6
    assert facts.logit_scale == 512**-0.5
    assert facts.parameters == 60_506_624


def test_untied_config_of_transformers_4() -> None:
    facts = architecture_from_config({**SMALL, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"})
    assert (facts.tied, facts.scale_logits, facts.ffn, facts.logit_scale) == (
        False,
        False,
        "gated-gelu_tanh",
        1.0,
    )


def test_untied_config_of_transformers_5_claims_to_be_tied() -> None:
    facts = architecture_from_config({**SMALL, "tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert (facts.tied, facts.scale_logits) == (False, False)


@pytest.mark.parametrize(("model_type", "scaled"), [("t5", True), ("mt5", False), ("umt5", False)])
def test_t5_s_logit_scale_is_its_config_s_and_the_others_follow_the_tying(model_type: str, scaled: bool) -> None:
    config = {
        **SMALL,
        "model_type": model_type,
        "tie_word_embeddings": True,
        "feed_forward_proj": "gated-gelu",
    }
    assert architecture_from_config(config, ["lm_head.weight"]).scale_logits is scaled
    assert architecture_from_config(config, ["shared.weight"]).scale_logits


def test_umt5_without_model_type_is_known_by_its_class_or_its_second_bias() -> None:
    by_class = architecture_from_config({**SMALL, "architectures": ["UMT5ForConditionalGeneration"]})
    assert by_class.per_layer_bias
    assert by_class.activation == "gelu_tanh"
    bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    assert architecture_from_config(SMALL, [bias]).per_layer_bias
    assert not architecture_from_config(SMALL, [bias.replace("block.1", "block.0")]).per_layer_bias


def test_gelu_alone_is_the_exact_form_and_gated_gelu_the_tanh_form() -> None:
    activations = {
        spelled: architecture_from_config({**SMALL, "feed_forward_proj": spelled}).ffn
        for spelled in ("gelu", "gelu_new", "gated-gelu", "gated-silu", "gated-swish", "gated-relu")
    }
    assert list(activations.values()) == [
        "gelu_erf",
        "gelu_tanh",
        "gated-gelu_tanh",
        "gated-silu",
        "gated-silu",
        "gated-relu",
    ]


def test_entries_of_their_own_win_over_the_projection_s_name_as_in_transformers() -> None:
    facts = architecture_from_config({**SMALL, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"})
    assert facts.ffn == "gated-gelu_erf"
    facts = architecture_from_config({**SMALL, "dense_act_fn": "silu", "is_gated_act": True})
    assert facts.ffn == "gated-silu"


def test_null_and_lists_for_token_ids() -> None:
    config = {**SMALL, "eos_token_id": [1, 7], "pad_token_id": 3, "decoder_start_token_id": None}
    facts = architecture_from_config(config)
    assert (facts.eos_token_id, facts.pad_token_id, facts.decoder_start_token_id) == (1, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_kv": None, "num_heads": None}, "lacks d_kv, num_heads; a T5-family"),
        ({"d_model": "512"}, "d_model = '512'; positive whole numbers"),
        ({"num_layers": 0, "d_ff": -1}, "d_ff = -1, num_layers = 0; positive"),
        ({"model_type": "bart"}, "'bart' is not of the T5 family; expected t5, mt5 or umt5"),
        ({"model_type": "longt5"}, "'longt5' is not of the T5 family"),
        (
            {"feed_forward_proj": "gated-mish"},
            "'gated-mish', which has no fused form here; expected one of relu",
        ),
        ({"feed_forward_proj": "double-relu"}, "'double-relu', which has no fused form"),
        ({"dense_act_fn": "mish"}, "dense_act_fn is 'mish', which has no fused form here; expected one of relu"),
        ({"dense_act_fn": ["relu"]}, "dense_act_fn is ['relu'], which"),
        ({"is_gated_act": "no"}, "is_gated_act is 'no'; true or false"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=r"^config\.json") as caught:
        architecture_from_config({**SMALL, **change})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize(
    ("activation", "gated"),
    [("relu", False), ("gelu_erf", False), ("gelu_tanh", True), ("gelu_erf", True), ("silu", True)],
)
def test_config_and_back(model_type: str, activation: str, gated: bool) -> None:
    facts = Architecture(
        vocab_size=99,
        d_model=24,
        d_kv=16,
        d_ff=40,
        num_heads=5,
        encoder_layers=3,
        decoder_layers=2,
        activation=activation,
        gated=gated,
        tied=False,
        scale_logits=False,
        per_layer_bias=model_type == "umt5",
        norm_epsilon=1e-5,
        num_buckets=16,
    )
    assert architecture_from_config(config_from_architecture(facts, model_type)) == facts


def test_shapes_of_a_decoder_block() -> None:
    facts = architecture_from_config({**SMALL, "d_kv": 32, "num_decoder_layers": 2})
    shapes = facts.tensor_shapes()
    assert shapes["decoder.block.1.layer.1.EncDecAttention.k.weight"] == (256, 512)
    assert shapes["decoder.block.1.layer.2.DenseReluDense.wo.weight"] == (512, 2048)
    assert shapes["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (32, 8)
    assert "decoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" not in shapes
    assert "decoder.block.2.layer.0.layer_norm.weight" not in shapes
