"""What sentence-transformers puts behind an encoder: pooling, dense layers, length 1; read from ``modules.json``.

    modules.json                         which modules, in order, and the folder of each
    sentence_bert_config.json            how long texts may be
    config_sentence_transformers.json    prompts
    1_Pooling/config.json, 2_Dense/...   settings and weights of the modules

A module that is not read exactly is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from t5edge.bundle.records import ACTIVATIONS, SENTENCE, SentenceFacts, SentenceStep
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.checkpoint import read_json
from t5edge.exporter.checkpoint.sentence import SentenceModules
from t5edge.exporter.checkpoint.stores import open_folder_store

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.stores import Tensors

MODULES = "modules.json"
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Older settings of ``Pooling``, in the order in which several are joined -> what each is called now."""
NO_PROMPT_POOLED = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")
"""Models whose settings do not say that prompts are left out; sentence-transformers knows them by name."""
IDENTITY = "torch.nn.modules.linear.Identity"
UNLIMITED = 1 << 24
"""A tokenizer without a limit states a number far beyond this."""
KEPT = "the encoder alone is exported with --subfolder naming its folder, or from a folder without modules.json."


def encoder_folder(folder: Path) -> Path:
    """Where a model of sentence-transformers keeps its encoder; ``folder`` itself where it is none.

    Raises:
        UserError: it begins with no transformer, or lies outside.
    """
    return folder / _modules(folder)[0]["path"] if (folder / MODULES).is_file() else folder


def module_folders(folder: Path) -> list[str]:
    """Folders of the modules inside ``folder``, those that have one."""
    return [module["path"] for module in _modules(folder) if module["path"]] if (folder / MODULES).is_file() else []


def read_modules(folder: Path, source: str, d_model: int) -> SentenceModules | None:
    """The modules in ``folder``; None where there is no ``modules.json``.

    Raises:
        UserError: a module that is not known here, or that does not fit the one before.
    """
    if not (folder / MODULES).is_file():
        return None
    _, *modules = _modules(folder)
    if not modules or modules[0]["kind"] != "Pooling":
        raise UserError(f"'{source}': {MODULES} has no Pooling behind its transformer; {KEPT}")
    pooling, include_prompt = _pooling(read_json(folder / modules[0]["path"] / "config.json"), source, d_model)
    steps: list[SentenceStep] = []
    stores: dict[str, Tensors] = {}
    size = d_model * len(pooling)
    for module in modules[1:]:
        settings = _settings(folder / module["path"])
        if module["kind"] == "Normalize":
            _require_embedding(settings, source, "Normalize")
            steps.append(SentenceStep("normalize", size))
        elif module["kind"] == "Dense":
            prefix = f"{SENTENCE}{module['idx']}."
            stores[prefix] = open_folder_store(folder / module["path"])
            steps.append(_dense(settings, stores[prefix], f"{prefix}linear.", source, size))
            size = steps[-1].size
        elif module["kind"] != "Dropout":
            raise UserError(f"'{source}' has a module {module['type']}, which is not exported; {KEPT}")
    texts = _texts(folder, source)
    include_prompt &= source not in NO_PROMPT_POOLED
    return SentenceModules(SentenceFacts(pooling, steps, size, include_prompt=include_prompt, **texts), stores)


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``modules.json``, with the ``kind`` of each: its class's name.

    Raises:
        UserError: it is damaged, or begins with something else than a transformer.
    """
    path = folder / MODULES
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [(int(entry["idx"]), _inside(entry["path"]), str(entry["type"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error!r:.80}); copy or download it again.") from error
    modules: list[dict[str, Any]] = [
        {"idx": idx, "path": inside, "type": kind, "kind": kind.rpartition(".")[2]} for idx, inside, kind in found
    ]
    if not modules or modules[0]["kind"] != "Transformer":
        raise UserError(f"{path} does not begin with a Transformer; only T5's encoders are exported.")
    return modules


def _inside(path: Any) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path} leaves the folder")
    return str(path)


def _settings(folder: Path) -> dict[str, Any]:
    """A module's ``config.json``; older ones have none where there is nothing to set."""
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _pooling(settings: Mapping[str, Any], source: str, d_model: int) -> tuple[tuple[str, ...], bool]:
    """The modes in the order in which they are joined, and whether a prompt is pooled too."""
    stated = settings.get("pooling_mode")
    modes = [stated] if isinstance(stated, str) else stated
    if modes is None:
        modes = [mode for key, mode in POOLINGS.items() if settings.get(key)] or ["mean"]
    unknown = [mode for mode in modes if mode not in POOLINGS.values()]
    if unknown:
        raise UserError(f"'{source}' pools by {unknown[0]}; known are {', '.join(POOLINGS.values())}. Else {KEPT}")
    size = settings.get("embedding_dimension", settings.get("word_embedding_dimension", d_model))
    if size != d_model:
        raise UserError(f"'{source}' pools vectors of {size}, its encoder gives {d_model}; copy or download it again.")
    return tuple(modes), bool(settings.get("include_prompt", True))


def _require_embedding(settings: Mapping[str, Any], source: str, what: str) -> None:
    """Refuse a module that works on something else than the embedding."""
    for place in (settings.get("module_input_name"), settings.get("module_output_name")):
        if place not in (None, "sentence_embedding"):
            raise UserError(f"'{source}' has a {what} of {place}, which is not exported; {KEPT}")


def _dense(settings: Mapping[str, Any], store: Tensors, prefix: str, source: str, size: int) -> SentenceStep:
    """A dense layer of ``size`` inputs.

    Raises:
        UserError: an activation or a residual that is not known here, or weights of another size.
    """
    _require_embedding(settings, source, "Dense")
    if settings.get("use_residual"):
        raise UserError(f"'{source}' has a Dense with a residual, which is not exported; {KEPT}")
    stated = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = None if stated == IDENTITY else stated.rpartition(".")[2]
    if name is not None and (name not in ACTIVATIONS or not stated.startswith("torch.nn.")):
        raise UserError(
            f"'{source}' has a Dense with the activation {stated}; known are Identity, {', '.join(ACTIVATIONS)}. "
            f"Else {KEPT}"
        )
    bias = "linear.bias" in store.tensors
    shapes = {key: list(tensor.shape) for key, tensor in store.tensors.items()}
    out = int(settings.get("out_features", 0))
    expected = {"linear.weight": [out, size]} | ({"linear.bias": [out]} if settings.get("bias", True) else {})
    if shapes != expected:
        raise UserError(f"'{source}' has a Dense of {shapes}, expected {expected}; copy or download it again.")
    return SentenceStep("dense", out, prefix, bias, name)


def _texts(folder: Path, source: str) -> dict[str, Any]:
    """How texts become tokens: the facts about length, case and prompts."""
    transformer = folder / _modules(folder)[0]["path"]
    settings, tokenizer = (
        read_json(path) if (path := transformer / name).is_file() else {}
        for name in ("sentence_bert_config.json", "tokenizer_config.json")
    )
    path = folder / "config_sentence_transformers.json"
    model = read_json(path) if path.is_file() else {}
    given = {**(settings.get("tokenizer_args") or {}), **(settings.get("processor_kwargs") or {})}
    limits = [given.get("model_max_length"), settings.get("max_seq_length"), tokenizer.get("model_max_length")]
    limit = next((number for number in limits if isinstance(number, (int, float)) and number > 0), None)
    prompts = {str(name): text for name, text in (model.get("prompts") or {}).items() if isinstance(text, str)}
    default = model.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(f"'{source}' puts the prompt '{default}' before every text and has no such prompt.")
    return {
        "max_length": None if limit is None or limit > UNLIMITED else int(limit),
        "lower_case": bool(settings.get("do_lower_case", False)),
        "prompts": prompts,
        "default_prompt": default,
    }
