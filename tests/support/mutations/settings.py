"""Token ids, tokenizer, generation settings and facts of the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from support.mutations.draft import Draft
from support.mutations.mutation import Mutation, require

TOKENIZER, SETTINGS, MANIFEST, CONFIG = "tokenizer.json", "generation_config.json", "bundle.json", "config.json"


def generation(changes: Mapping[str, Any], draft: Draft) -> None:
    """Settings changed wherever they stand: a value of None removes one."""
    with draft.json(MANIFEST) as entries:
        _update(entries["generation"], changes)
    if (draft.folder / SETTINGS).is_file():
        with draft.json(SETTINGS) as beside:
            _update(beside, changes)


def _update(data: dict[str, Any], changes: Mapping[str, Any]) -> None:
    data |= changes
    for key in [key for key, value in changes.items() if value is None]:
        del data[key]


def beside_alone(draft: Draft) -> None:
    """Other clients read generation_config.json; the manifest is right."""
    require((draft.folder / SETTINGS).is_file())
    with draft.json(SETTINGS) as beside:
        beside["eos_token_id"] = 2


def settings_missing(draft: Draft) -> None:
    require((draft.folder / SETTINGS).is_file())
    (draft.folder / SETTINGS).unlink()


def config_ids(draft: Draft) -> None:
    """config.json, which other clients read, names another start token."""
    require((draft.folder / CONFIG).is_file())
    with draft.json(CONFIG) as config:
        config["decoder_start_token_id"] = 2


def config_shape(draft: Draft) -> None:
    require((draft.folder / CONFIG).is_file())
    with draft.json(CONFIG) as config:
        config["d_kv"] += 8


def architecture(changes: Mapping[str, Any], draft: Draft) -> None:
    with draft.json(MANIFEST) as entries:
        entries["architecture"] |= changes


def all_ids(key: str, draft: Draft) -> None:
    """One special id is 5 in every file."""
    generation({key: 5}, draft)
    architecture({key: 5}, draft)
    if (draft.folder / CONFIG).is_file():
        with draft.json(CONFIG) as config:
            config[key] = 5


def tokenizer(how: Callable[[dict[str, Any]], None], draft: Draft) -> None:
    require((draft.folder / TOKENIZER).is_file())
    with draft.json(TOKENIZER) as data:
        before = json.dumps(data)
        how(data)
        require(json.dumps(data) != before)


def tokens_swapped(data: dict[str, Any]) -> None:
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, dict):
        first, second = [token for token, index in sorted(vocabulary.items(), key=lambda item: item[1])][40:42]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    else:
        vocabulary[40], vocabulary[41] = vocabulary[41], vocabulary[40]


def part_removed(part: str, data: dict[str, Any]) -> None:
    data[part] = None


def part_set(part: str, value: Any, data: dict[str, Any]) -> None:
    data[part] = value


def prefix_always(data: dict[str, Any]) -> None:
    """A space in front of every text, as other tokenizers of the family add it."""
    for entry in [data["pre_tokenizer"], *(data["pre_tokenizer"] or {}).get("pretokenizers", [])]:
        if entry and entry.get("type") == "Metaspace":
            entry["prepend_scheme"] = "always"


def merges_lost(data: dict[str, Any]) -> None:
    """The last merges of a BPE vocabulary are cut off."""
    require(bool(data["model"].get("merges")))
    del data["model"]["merges"][-12:]


def added_lost(data: dict[str, Any]) -> None:
    data["added_tokens"] = data["added_tokens"][:-1]


def tokenizer_missing(draft: Draft) -> None:
    require((draft.folder / TOKENIZER).is_file())
    (draft.folder / TOKENIZER).unlink()


def _ids(name: str, apply: Callable[[Draft], None]) -> Mutation:
    return Mutation(name, "ids", "text", apply)


def _settings(name: str, apply: Callable[[Draft], None]) -> Mutation:
    return Mutation(name, "generation settings", "text", apply)


def _tokenizer(name: str, how: Callable[[dict[str, Any]], None]) -> Mutation:
    return Mutation(name, "tokenizer", "text", partial(tokenizer, how))


TRUNCATION = {"max_length": 16, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
MUTATIONS = (
    _ids("start token changed", partial(generation, {"decoder_start_token_id": 2})),
    _ids("end token changed", partial(generation, {"eos_token_id": 2})),
    _ids("padding token changed", partial(generation, {"pad_token_id": 2})),
    _ids("end token removed", partial(generation, {"eos_token_id": None})),
    _ids("start token changed in every file", partial(all_ids, "decoder_start_token_id")),
    _ids("padding token changed in every file", partial(all_ids, "pad_token_id")),
    _ids("end token changed in generation_config.json alone", beside_alone),
    _ids("start token changed in config.json alone", config_ids),
    _settings("four beams instead of one", partial(generation, {"num_beams": 4})),
    _settings("at most five new tokens", partial(generation, {"max_new_tokens": 5})),
    _settings("sampling switched on", partial(generation, {"do_sample": True, "temperature": 1.5})),
    _settings("a repetition penalty", partial(generation, {"repetition_penalty": 1.3})),
    _settings("a setting that no generate supports", partial(generation, {"penalty_alpha": 0.6, "top_k": 4})),
    _settings("generation_config.json missing", settings_missing),
    _tokenizer("two tokens swapped", tokens_swapped),
    _tokenizer("no end token (post-processor removed)", partial(part_removed, "post_processor")),
    _tokenizer("texts in lower case", partial(part_set, "normalizer", {"type": "Lowercase"})),
    _tokenizer("normalizer removed", partial(part_removed, "normalizer")),
    _tokenizer("no decoder: spaces lost", partial(part_removed, "decoder")),
    _tokenizer("a space before every text", prefix_always),
    _tokenizer("twelve merges lost", merges_lost),
    _tokenizer("an added token lost", added_lost),
    _tokenizer("texts cut at 16 tokens", partial(part_set, "truncation", TRUNCATION)),
    Mutation("tokenizer.json missing", "tokenizer", "text", tokenizer_missing),
    Mutation("config.json with another d_kv", "manifest", "text", config_shape),
    Mutation(
        "manifest with another norm epsilon", "manifest", "refused", partial(architecture, {"norm_epsilon": 1e-5})
    ),
    Mutation(
        "manifest says the logits are scaled the other way",
        "manifest",
        "refused",
        lambda d: architecture({"scale_logits": not d.architecture.scale_logits}, d),
    ),
)
