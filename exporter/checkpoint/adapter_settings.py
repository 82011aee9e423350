"""What an ``adapter_config.json`` of PEFT says, and which adapters are a change of weights that can be merged exactly.

LORA (with rsLoRA, DoRA, patterns), LOHA, LOKR, IA3     merged
everything else                                         refused by name

Source: peft 0.21, ``tuners/*/config.py``, ``tuners/*/layer.py``, ``utils/other.py`` (``get_pattern_key``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.hub import ADAPTER_CONFIG

KINDS = ("LORA", "LOHA", "LOKR", "IA3")
PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT")
"""Learnt inputs: no change of weights says the same."""
MERGE_FIRST = "merge it with peft (model.merge_and_unload(), then save_pretrained()) and export the merged folder."
OTHER_FORMS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Settings of LORA that make it more than a product of two matrices added to a weight."""
SAME_WEIGHTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base model's weights as they are."""


@dataclass(frozen=True)
class AdapterSettings:
    """The part of the config that the merged weights depend on. ``base`` is where it says its base model lies."""

    kind: str
    base: str | None = None
    base_revision: str | None = None
    rank: int = 8
    alpha: float = 8
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilized: bool = False
    dora: bool = False

    def rank_of(self, module: str) -> int:
        """The rank of one module, such as ``encoder.block.0.layer.0.SelfAttention.q``."""
        return _matching(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of one module's matrices is multiplied by; 1 for IA3, which multiplies the weights."""
        if self.kind == "IA3":
            return 1.0
        rank = self.rank_of(module)
        return float(
            _matching(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilized else rank)
        )


def _matching(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first key, a regular expression, that ``module`` ends with."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_settings(folder: Path) -> AdapterSettings:
    """The settings of the adapter in ``folder``.

    Raises:
        UserError: no valid config, or an adapter that cannot be merged exactly.
    """
    where = f"'{folder}' is a PEFT adapter of '{base_of(folder) or 'an unnamed model'}'"
    config = read_config(folder)
    if config is None:
        raise UserError(f"{where} whose {ADAPTER_CONFIG} is not a JSON object; save the adapter again.")
    kind = kind_of(config)
    if kind in PROMPTS:
        raise UserError(
            f"{where} of type {kind}, a learnt prompt, which changes no weights; --prompt NAME=DIR puts it in front, "
            f"and only {_kinds()} are merged."
        )
    if kind not in KINDS:
        raise UserError(f"{where} of type {kind or 'unknown'}; {_kinds()} are merged here: {MERGE_FIRST}")
    other = [name for name in OTHER_FORMS if kind == "LORA" and config.get(name)]
    if kind == "LORA" and config.get("init_lora_weights") not in SAME_WEIGHTS:
        other.append(f"init_lora_weights = {config['init_lora_weights']!r}"[:60])
    if other:
        raise UserError(f"{where} with {', '.join(other)}, which is not merged here: {MERGE_FIRST}")
    try:
        return _settings(kind, config)
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        wrong = f"whose {ADAPTER_CONFIG} has a value of the wrong kind ({error})"
        raise UserError(f"{where} {wrong}; save the adapter again.") from error


def _settings(kind: str, config: Mapping[str, Any]) -> AdapterSettings:
    ranks = {str(key): int(value) for key, value in (config.get("rank_pattern") or {}).items()}
    alphas = {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
    for key in (*ranks, *alphas):
        re.compile(key)
    found = AdapterSettings(
        kind,
        config.get("base_model_name_or_path") or None,
        config.get("revision") or None,
        int(config.get("r") or 8),
        float(config.get("lora_alpha" if kind == "LORA" else "alpha") or 8),
        ranks,
        alphas,
        kind == "LORA" and bool(config.get("use_rslora")),
        kind == "LORA" and bool(config.get("use_dora")),
    )
    smallest = min([found.rank, *ranks.values()])
    if smallest < 1:
        raise ValueError(f"a rank of {smallest}")
    return found


def base_of(folder: Path) -> str | None:
    """The base model that the adapter in ``folder`` names, if its config can be read and names one."""
    base = (read_config(folder) or {}).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def kind_of(config: Mapping[str, Any]) -> str:
    """``peft_type`` in capitals, as in LORA; empty where there is none."""
    return str(config.get("peft_type", "")).removeprefix("PeftType.").upper()


def is_prompt(folder: Path) -> bool:
    """Whether the adapter in ``folder`` is a learnt prompt, of whatever type."""
    return kind_of(read_config(folder) or {}) in PROMPTS


def read_config(folder: Path) -> dict[str, Any] | None:
    """``adapter_config.json``; None where it is no JSON object."""
    try:
        content = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _kinds() -> str:
    return f"{', '.join(KINDS[:-1])} and {KINDS[-1]}"
