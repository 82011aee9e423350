"""What an adapter's config means, and which are refused; no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.adapter_settings import AdapterSettings, read_settings


def settings(folder: Path, **config: Any) -> AdapterSettings:
    given = {"peft_type": "LORA", "base_model_name_or_path": "google/flan-t5-small", **config}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return read_settings(folder)


def refusal(folder: Path, **config: Any) -> str:
    with pytest.raises(UserError) as caught:
        settings(folder, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scales_follow_the_patterns(tmp_path: Path) -> None:
    found = settings(tmp_path, r=8, lora_alpha=16, rank_pattern={"SelfAttention.q": 4}, alpha_pattern={"wo": 2})
    assert found.scale_of("encoder.block.0.layer.0.SelfAttention.q") == 4.0
    assert found.scale_of("decoder.block.0.layer.2.DenseReluDense.wo") == 0.25
    assert found.scale_of("lm_head") == 2.0
    assert settings(tmp_path, r=16, lora_alpha=8, use_rslora=True).scale_of("lm_head") == 2.0


def test_other_types_have_their_own_names(tmp_path: Path) -> None:
    assert settings(tmp_path, peft_type="LOHA", r=4, alpha=2).scale_of("lm_head") == 0.5
    assert settings(tmp_path, peft_type="IA3").scale_of("lm_head") == 1.0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "of type PREFIX_TUNING, a learnt prompt, which changes no weights"),
        ({"peft_type": "ADALORA"}, "of type ADALORA; LORA, LOHA, LOKR and IA3 are merged here: merge it with peft ("),
        ({"peft_type": None}, "of type NONE; "),
        ({"init_lora_weights": "pissa_niter_4"}, "with init_lora_weights = 'pissa_niter_4', which is not merged here"),
        ({"lora_bias": True}, "with lora_bias, which is not merged here: merge it with peft"),
        ({"alora_invocation_tokens": [1]}, "with alora_invocation_tokens"),
        ({"r": "many"}, "has a value of the wrong kind"),
        ({"r": -1}, "has a value of the wrong kind (a rank of -1)"),
        ({"rank_pattern": {"(": 2}}, "has a value of the wrong kind"),
        ({"rank_pattern": [2]}, "has a value of the wrong kind"),
    ],
)
def test_what_cannot_be_merged_is_named(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    assert "is a PEFT adapter of 'google/flan-t5-small'" in refusal(tmp_path, **config)
    assert said in refusal(tmp_path, **config)
