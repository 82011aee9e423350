"""What the files beside a tokenizer say of it, put into ``tokenizer.json``, which is all that the runtime reads.

added_tokens.json, added_tokens_decoder     tokens that tokenizer.json lacks, at their ids
clean_up_tokenization_spaces                no space before punctuation in decoded text
byte_fallback of a SentencePiece model      characters without a piece become bytes instead of ``<unk>``
legacy: false                               no space behind a special token that has none in the text

Source: transformers 4.57 and 5.23, ``PreTrainedTokenizerFast``, ``convert_slow_tokenizer.SpmConverter``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t5edge.errors import UserError

CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""In the order of transformers' ``clean_up_tokenization``."""
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def with_settings(content: bytes, folder: Path, model: Path | None = None) -> bytes:
    """``content``, the bytes of a tokenizer.json, with what the files of ``folder`` add to it.

    ``model``: the SentencePiece model that it was converted from, if it was. The bytes stay as they are where nothing
    is to be added.

    Raises:
        UserError: an added token whose id the tokenizer cannot give it, or a damaged file.
    """
    config = _read(folder / "tokenizer_config.json")
    tokenizer: dict[str, Any] = json.loads(_loadable(content, folder))
    before = json.dumps(tokenizer)
    _add_tokens(tokenizer, _added_tokens(folder, config))
    if model is not None:
        if has_byte_fallback(model):
            _fall_back_to_bytes(tokenizer)
        if config.get("legacy") is False:
            _prepend_first_only(tokenizer)
    if config.get("clean_up_tokenization_spaces") and tokenizer["model"].get("type") != "BPE":
        tokenizer["decoder"] = _sequence(tokenizer["decoder"], [{"type": "Fuse"}, *map(_replacement, CLEAN_UP)])
    if json.dumps(tokenizer) == before:
        return content
    return json.dumps(tokenizer, ensure_ascii=False, indent=2).encode()


def _loadable(content: bytes, folder: Path) -> str:
    """The tokenizer as the library writes it, with every entry there is."""
    from tokenizers import Tokenizer

    try:
        return str(Tokenizer.from_str(content.decode()).to_str())
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{folder}: tokenizer.json cannot be loaded ({error}). Save it again.") from error


def has_byte_fallback(model: Path) -> bool:
    """Whether a SentencePiece model was trained to spell unknown characters in bytes."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model.read_bytes())
    return bool(proto.trainer_spec.byte_fallback)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}). Copy or download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object. Copy or download it again.")
    return found


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Added tokens with their id and flags, in the order of their ids."""
    found: dict[str, dict[str, Any]] = {}
    for token, number in _read(folder / "added_tokens.json").items():
        found[token] = {"id": number, **FLAGS}
    for number, facts in (config.get("added_tokens_decoder") or {}).items():
        flags = {flag: bool(facts.get(flag, default)) for flag, default in FLAGS.items()}
        found[facts["content"]] = {"id": int(number), **flags}
    return dict(sorted(found.items(), key=lambda item: int(item[1]["id"])))


def _add_tokens(tokenizer: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    """Add those that ``tokenizer`` has not as added tokens; ids must follow its own without a gap.

    Raises:
        UserError: they do not.
    """
    from tokenizers import Tokenizer

    known = {entry["content"] for entry in tokenizer["added_tokens"]}
    missing = {token: facts for token, facts in wanted.items() if token not in known}
    tokenizer["added_tokens"] += [{**facts, "content": token} for token, facts in missing.items()]
    if not missing:
        return
    loaded = Tokenizer.from_str(json.dumps(tokenizer))
    wrong = {token: facts["id"] for token, facts in missing.items() if loaded.token_to_id(token) != facts["id"]}
    if wrong:
        token, number = next(iter(wrong.items()))
        raise UserError(
            f"the added token {token!r} has id {number}, and the tokenizer would give it {loaded.token_to_id(token)}; "
            "save the tokenizer with transformers' save_pretrained(), which writes a whole tokenizer.json."
        )


def _fall_back_to_bytes(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["byte_fallback"] = True
    tokenizer["decoder"] = _sequence({"type": "ByteFallback"}, [tokenizer["decoder"]])


def _prepend_first_only(tokenizer: dict[str, Any]) -> None:
    """One space stands for a run of white space, none is added but at the start of the text."""
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    spaces = [_pattern(r"\s+$", ""), _pattern(r"\s+", " ")]
    own = [] if tokenizer["normalizer"] is None else [tokenizer["normalizer"]]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [*own, *spaces]}
    tokenizer["pre_tokenizer"] = space


def _sequence(first: dict[str, Any] | None, then: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": [*([] if first is None else [first]), *then]}


def _replacement(pair: tuple[str, str]) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pair[0]}, "content": pair[1]}


def _pattern(regex: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}
