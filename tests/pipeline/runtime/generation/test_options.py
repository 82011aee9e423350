"""Our options beside transformers' own."""

from __future__ import annotations

from transformers import GenerationConfig

from t5edge.runtime.generation.options import NEUTRAL, GenerationOptions, read_options


def test_defaults_and_unsupported_settings_are_those_of_transformers() -> None:
    config = GenerationConfig()
    theirs = config.to_dict() | config._get_default_generation_params()
    ours = vars(GenerationOptions()) | {"eos_token_id": None, "pad_token_id": None, "max_length": 20}
    ours |= {"decoder_start_token_id": None}
    assert {name: theirs[name] for name in ours if name != "seed"} == {
        name: value for name, value in ours.items() if name != "seed"
    }
    read_options(theirs)
    harmless = {"use_cache", "bos_token_id", "cache_implementation", "return_dict_in_generate"}
    assert not harmless & NEUTRAL.keys()
