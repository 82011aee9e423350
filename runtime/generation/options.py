"""How to generate: the generation settings of transformers that exist here, same names and defaults."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from t5edge.errors import UserError

DEFAULT_NEW_TOKENS = 20
LEAST_SCALE = 1e-6
"""Temperatures and penalties below this, or above its inverse, overflow float32."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "constraints": (),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "max_time": (),
    "min_p": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1.0,),
    "watermarking_config": (),
}
"""Settings of transformers that do not exist here -> the values, besides None, that change nothing."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Settings of one ``generate`` call. Lengths count tokens; ids are vocabulary ids.

    ``max_new_tokens`` and ``min_new_tokens`` do not count the decoder start token and win over ``max_length``
    and ``min_length``, which do. Without any, 20 new tokens. ``top_k=0`` and ``top_p=1.0`` switch those
    filters off. ``early_stopping``: True stops a sentence at ``num_beams`` finished hypotheses, False when
    the best open beam at its present length cannot win, "never" when it cannot win at any length.
    ``seed=None`` draws a fresh one. ``prompt_lookup_num_tokens`` and ``num_assistant_tokens`` are the most tokens that
    a pass checks of a draft; they change no answer.

    Raises ``UserError`` with every invalid setting at once.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | tuple[int, ...] | None = None
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = 0
    decoder_start_token_id: int = 0
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    num_assistant_tokens: int = 20

    def __post_init__(self) -> None:
        problems = [*_wrong_types(self)] or [*_wrong_values(self), *_wrong_pairs(self)]
        if problems:
            raise UserError("generate: " + "; ".join(problems))

    def check_ids(self, vocab_size: int) -> None:
        """Raises ``UserError`` when a token id of the options lies outside the vocabulary."""
        names = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id")
        wrong = [
            f"{name} is {token}, the vocabulary has {vocab_size} ids"
            for name in names
            for token in as_ids(getattr(self, name))
            if token >= vocab_size
        ]
        if wrong:
            raise UserError("generate: " + "; ".join(wrong) + "; take the ids from this model's tokenizer")

    @property
    def total_length(self) -> int:
        """Longest output in tokens, decoder start token included."""
        if self.max_new_tokens is not None:
            return 1 + self.max_new_tokens
        return self.max_length if self.max_length is not None else 1 + DEFAULT_NEW_TOKENS

    @property
    def shortest_length(self) -> int:
        """No end token before the output has this many tokens, decoder start token included."""
        return self.min_length if self.min_new_tokens is None else 1 + self.min_new_tokens

    @property
    def eos(self) -> tuple[int, ...]:
        """Every id that ends a sequence; empty when none does."""
        return as_ids(self.eos_token_id)

    @property
    def pad(self) -> int:
        """What follows the end token in greedy search and sampling: the padding id, or the first end id."""
        return self.pad_token_id if self.pad_token_id is not None else (*self.eos, 0)[0]

    @property
    def copies(self) -> int:
        """Rows per sentence."""
        return max(self.num_beams, self.num_return_sequences)


SETTINGS = frozenset({entry.name for entry in fields(GenerationOptions)} - {"seed"} | NEUTRAL.keys())
"""Every setting of a ``generation_config.json`` that changes what is generated."""


def read_options(config: Mapping[str, object], **overrides: Any) -> GenerationOptions:
    """Options from the fields of a ``generation_config.json``; overrides win, None in either means not set.

    A length given as an override replaces both spellings of that length in the file.
    Raises ``UserError`` when the file asks for a setting that would change the output and is not supported.
    """
    names = {field.name for field in fields(GenerationOptions)} - {"seed"}
    chosen = {name: value for name, value in config.items() if name in names and value is not None}
    given = {name: value for name, value in overrides.items() if value is not None}
    unknown = sorted(set(given) - names - {"seed"})
    expected = ", ".join(sorted(names | {"seed"}))
    problems = [f"{name} is not an option; expected one of {expected}" for name in unknown]
    problems += _unsupported(config)
    if problems:
        raise UserError("generate: " + "; ".join(problems))
    for bound in ("max", "min"):
        if {f"{bound}_length", f"{bound}_new_tokens"} & given.keys():
            chosen.pop(f"{bound}_length", None)
            chosen.pop(f"{bound}_new_tokens", None)
    return GenerationOptions(**{name: _plain(value) for name, value in {**chosen, **given}.items()})


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, lists as tuples."""
    if isinstance(value, (list, np.ndarray)):
        return tuple(_plain(entry) for entry in value)
    return value.item() if isinstance(value, np.generic) else value


def as_ids(token_ids: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """One id, several or none, as a tuple."""
    if token_ids is None:
        return ()
    return token_ids if isinstance(token_ids, tuple) else (token_ids,)


def _unsupported(config: Mapping[str, object]) -> Iterator[str]:
    for name, neutral in NEUTRAL.items():
        value = config.get(name)
        if value is not None and value not in neutral:
            yield (
                f"the generation config sets {name} to {value!r}, which this runtime does not have; "
                f"remove it from generation_config.json"
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wrong_types(options: GenerationOptions) -> Iterator[str]:
    """Problems by annotation; ids of a tuple are looked at in ``_wrong_values``."""
    for field in fields(options):
        value, kind = getattr(options, field.name), str(field.type)
        if (value is None and "None" in kind) or (isinstance(value, tuple) and "tuple" in kind):
            continue
        if kind.startswith("int") and not _is_count(value):
            yield f"{field.name} must be an integer, not {value!r}"
        elif kind == "float" and not _is_number(value):
            yield f"{field.name} must be a finite number, not {value!r}"
        elif kind == "bool" and not isinstance(value, bool):
            yield f"{field.name} must be True or False, not {value!r}"
        elif "never" in kind and not isinstance(value, bool) and value != "never":
            yield f'{field.name} must be True, False or "never", not {value!r}'


def _wrong_values(options: GenerationOptions) -> Iterator[str]:
    lowest = {"max_new_tokens": 1, "max_length": 2, "num_beams": 1, "num_return_sequences": 1}
    lowest |= dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size", "num_assistant_tokens"), 1)
    lowest |= dict.fromkeys(("min_new_tokens", "min_length", "top_k", "seed", "no_repeat_ngram_size"), 0)
    lowest |= dict.fromkeys(("forced_bos_token_id", "pad_token_id", "decoder_start_token_id"), 0)
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            yield f"{name} must be at least {least}, not {value}"
    for name in ("temperature", "repetition_penalty"):
        if not LEAST_SCALE <= getattr(options, name) <= 1 / LEAST_SCALE:
            yield (
                f"{name} must be between {LEAST_SCALE} and {1 / LEAST_SCALE:g}, not {getattr(options, name)}; "
                "1.0 changes nothing"
            )
    if not 0 <= options.top_p <= 1:
        yield f"top_p must be between 0 and 1, not {options.top_p}; 1.0 keeps every token"
    for name in ("eos_token_id", "forced_eos_token_id"):
        ids = getattr(options, name)
        if ids == () or not all(_is_count(token) and token >= 0 for token in as_ids(ids)):
            yield f"{name} must be a token id, a tuple of them or None, not {ids!r}"


def _wrong_pairs(options: GenerationOptions) -> Iterator[str]:
    if options.shortest_length > options.total_length:
        yield (
            f"at least {options.shortest_length} and at most {options.total_length} tokens asked for, start "
            f"token included; lower min_new_tokens (min_length) or raise max_new_tokens (max_length)"
        )
    beams, returned = options.num_beams, options.num_return_sequences
    if beams > 1 and returned > beams:
        yield f"num_return_sequences is {returned}, more than num_beams {beams}; raise num_beams"
    if beams == 1 and returned > 1 and not options.do_sample:
        yield f"greedy search has one result, not {returned}; set do_sample or num_beams to have more"
