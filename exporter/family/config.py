"""Between ``config.json`` and an ``Architecture``, in both directions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from t5edge.bundle.architecture import HEADS, Architecture
from t5edge.errors import UserError

ACTIVATIONS = {
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_erf",
    "silu": "silu",
    "swish": "silu",
}
"""Spelling in ``feed_forward_proj`` and ``dense_act_fn`` -> our name. In the first, ``gated-gelu`` means the tanh form
(T5: transformers' own exception).
"""


SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "d_kv": "d_kv",
    "d_ff": "d_ff",
    "num_heads": "num_heads",
    "encoder_layers": "num_layers",
}
"""Our name -> required key of ``config.json``."""


OPTIONS = {
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
    "pad_token_id": "pad_token_id",
}
"""Our name -> key of ``config.json`` that may be absent or null; then our default holds."""


MODEL_TYPES = ("t5", "mt5", "umt5")


ID_KEYS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
MOST_LAYERS = 10_000
MOST_DISTANCE = 1 << 20


SECOND_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"


def _activation(config: Mapping[str, Any], model_type: str) -> tuple[str, bool]:
    """The activation, and whether it gates; ``dense_act_fn`` and ``is_gated_act`` win, as in transformers."""
    spelled = str(config.get("feed_forward_proj") or ("relu" if model_type == "t5" else "gated-gelu"))
    gate, _, act = spelled.rpartition("-")
    if spelled == "gated-gelu":
        act = "gelu_new"
    if gate not in ("", "gated") or act not in ACTIVATIONS:
        raise _no_fused_form("feed_forward_proj", spelled, ", each also with 'gated-' in front")
    act, gated = _given(config, "dense_act_fn", act), _given(config, "is_gated_act", gate == "gated")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise _no_fused_form("dense_act_fn", act)
    if not isinstance(gated, bool):
        raise UserError(f"config.json: is_gated_act is {gated!r}; true or false is needed.")
    return ACTIVATIONS[act], gated


def _no_fused_form(key: str, value: object, more: str = "") -> UserError:
    known = ", ".join(ACTIVATIONS)
    return UserError(f"config.json: {key} is {value!r}, which has no fused form here; expected one of {known}{more}.")


def architecture_from_config(config: Mapping[str, Any], tensor_names: Iterable[str] | None = None) -> Architecture:
    """Read the facts from a raw ``config.json``; ``tensor_names`` settle whether the output layer is tied.

    transformers 5 forces ``tie_word_embeddings`` to true and keeps the truth in ``scale_decoder_outputs``;
    older configs say ``tie_word_embeddings: false`` when the model is untied. UMT5 configs may lack
    ``model_type``: its mark is a position bias in every layer.

    The logits of mT5 and UMT5 are scaled exactly where the output layer is tied, as in the code that trained them (t5x,
    ``network.py``: ``logits_via_embedding``) and in transformers up to 4.57. transformers 5 always scales UMT5's and
    never mT5's.

    Raises:
        UserError: a required key is missing, or the activation or model type is not one of the family's.
    """
    model_type = _model_type(config)
    names = None if tensor_names is None else set(tensor_names)
    alone = names is not None and is_encoder_alone(names)
    per_layer_bias = model_type == "umt5" or (names is not None and SECOND_BIAS in names)
    activation, gated = _activation(config, model_type)
    scale = bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False))
    separate_head = ("lm_head.weight" in names) if names is not None else not scale
    sizes: dict[str, Any] = {ours: config[theirs] for ours, theirs in SIZES.items()}
    options = {ours: config[theirs] for ours, theirs in OPTIONS.items() if config.get(theirs) is not None}
    found = Architecture(
        **sizes,
        **options,
        decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        activation=activation,
        gated=gated,
        tied=not separate_head,
        scale_logits=scale if model_type == "t5" else not separate_head,
        per_layer_bias=per_layer_bias,
        eos_token_id=_first(config.get("eos_token_id"), 1),
        decoder_start_token_id=_first(config.get("decoder_start_token_id"), config.get("pad_token_id") or 0),
    )
    return _with_head(found.without_decoder() if alone else found, names or set(), config)


def head_of(tensor_names: Collection[str]) -> str:
    """What head a checkpoint has; empty for none."""
    names, alone = {*tensor_names}, is_encoder_alone(tensor_names)
    fitting = (head for head, own in HEADS.items() if names.issuperset(own) and alone == (head == "tokens"))
    return next(fitting, "")


def _with_head(found: Architecture, names: Collection[str], config: Mapping[str, Any]) -> Architecture:
    """``found`` as an encoder alone with a head; as it is where there is none."""
    head = head_of(names)
    if not head:
        return found
    labels = 2 if head == "span" else len(label_names(config))
    return replace(found.without_decoder(), head=head, labels=labels, head_layers=found.decoder_layers)


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a classifier's labels are called, by their numbers; as transformers, two unnamed ones where nothing is said.

    Raises:
        UserError: the numbers are not 0, 1, 2, ...
    """
    given = config.get("id2label")
    if not given:
        count = _given(config, "num_labels", 2)
        given = {place: f"LABEL_{place}" for place in range(count if _is_size(count) else 0)}
    found = {str(key): value for key, value in given.items()} if isinstance(given, dict) else {}
    names = tuple(str(found[str(place)]) for place in range(len(found)) if str(place) in found)
    if not names or len(names) != len(found):
        raise UserError("config.json: id2label names no labels 0, 1, 2, ...; save the model again.")
    return names


def is_encoder_alone(tensor_names: Collection[str]) -> bool:
    """Whether a checkpoint holds an encoder and neither decoder nor output layer, whatever its config says."""
    decoder = any(name.startswith(("decoder.", "lm_head.")) for name in tensor_names)
    return not decoder and any(name.startswith("encoder.block.") for name in tensor_names)


def config_from_architecture(architecture: Architecture, model_type: str = "t5") -> dict[str, Any]:
    """A raw ``config.json`` that says the same to us, to transformers 4 and to transformers 5."""
    names = {
        "t5": "T5ForConditionalGeneration",
        "mt5": "MT5ForConditionalGeneration",
        "umt5": "UMT5ForConditionalGeneration",
    }
    sizes = {theirs: getattr(architecture, ours) for ours, theirs in {**SIZES, **OPTIONS}.items()}
    return {
        "architectures": [names[model_type]],
        "model_type": model_type,
        "is_encoder_decoder": True,
        **sizes,
        "num_decoder_layers": architecture.decoder_layers,
        **_feed_forward(architecture),
        "tie_word_embeddings": architecture.tied,
        **({"scale_decoder_outputs": architecture.scale_logits} if model_type == "t5" else {}),
        "eos_token_id": architecture.eos_token_id,
        "decoder_start_token_id": architecture.decoder_start_token_id,
        "dropout_rate": 0.0,
    }


def _feed_forward(architecture: Architecture) -> dict[str, Any]:
    """The spelling that transformers 4 and 5 read as this activation; ``gated-gelu`` is their tanh form."""
    if architecture.gated and architecture.activation == "gelu_tanh":
        return {"feed_forward_proj": "gated-gelu"}
    spelled = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == architecture.activation)
    if not architecture.gated:
        return {"feed_forward_proj": spelled}
    own = {"dense_act_fn": spelled} if spelled == "gelu" else {}
    return {"feed_forward_proj": f"gated-{spelled}", **own}


def _model_type(config: Mapping[str, Any]) -> str:
    """The model type, after checking that the config is one of the family's and complete."""
    model_type = str(config.get("model_type") or _model_type_of_class(config))
    if model_type not in MODEL_TYPES:
        raise UserError(f"config.json: model_type '{model_type}' is not of the T5 family; expected t5, mt5 or umt5.")
    missing = [key for key in SIZES.values() if config.get(key) is None]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}; a T5-family config.json with these keys is needed.")
    counts = [key for key in (*SIZES.values(), "num_decoder_layers") if not _is_size(config.get(key))]
    if counts:
        wrong = ", ".join(f"{key} = {config[key]!r}" for key in counts)
        raise UserError(f"config.json: {wrong}; positive whole numbers are needed.")
    _check_values(config)
    return model_type


def _check_values(config: Mapping[str, Any]) -> None:
    """Raises: UserError for what no model of the family has, before memory or hours are spent on it."""
    depth = max(config["num_layers"], config.get("num_decoder_layers") or 1)
    if depth > MOST_LAYERS:
        raise UserError(f"config.json: {depth} layers; at most {MOST_LAYERS} are possible.")
    buckets = _given(config, "relative_attention_num_buckets", 32)
    distance = _given(config, "relative_attention_max_distance", 128)
    if not (_is_size(buckets) and _is_size(distance) and buckets >= 4 and buckets // 2 < distance <= MOST_DISTANCE):
        raise UserError(
            f"config.json: relative attention with {buckets!r} buckets up to distance {distance!r}; "
            f"at least 4 buckets and a distance above half of them, at most {MOST_DISTANCE}, are needed."
        )
    epsilon = _given(config, "layer_norm_epsilon", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise UserError(f"config.json: layer_norm_epsilon is {epsilon!r}; a number between 0 and 1 is needed.")
    require_ids(config, config["vocab_size"], "config.json")


def require_ids(settings: Mapping[str, Any], vocab_size: int, source: str) -> None:
    """Raises: UserError for a start, end or padding id that is no token of the model."""
    for key in ID_KEYS:
        given = settings.get(key)
        for value in given if isinstance(given, list) else [given]:
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and 0 <= value < vocab_size):
                raise UserError(
                    f"{source}: {key} is {given!r}; ids of the vocabulary, 0 to {vocab_size - 1}, are needed."
                )


def _given(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _model_type_of_class(config: Mapping[str, Any]) -> str:
    """What ``architectures`` says where ``model_type`` is absent (as in published UMT5 configs); else T5."""
    classes = config.get("architectures") or [""]
    if not isinstance(classes, list):
        raise UserError(f"config.json: architectures is {classes!r}; a list of class names is needed.")
    prefix = str(classes[0]).partition("5")[0].lower() + "5"
    return prefix if prefix in MODEL_TYPES else "t5"


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _first(value: Any, default: int) -> int:
    """A token id; configs may hold a list of them or null."""
    if isinstance(value, list):
        value = value[0] if value else None
    return default if value is None else int(value)
