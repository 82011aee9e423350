"""PEFT prompts: what was learnt to stand in front of a source, or in front of a decoder's own positions.

    open_prompt("./my-prompt")              a folder that peft's save_pretrained() wrote, under its own name
    open_prompt("spell=someone/prompt@v2")  a hub id, at a branch, tag or commit, under the name "spell"
    with_prompts(checkpoint, prompts)       the same model with tables of them

    PROMPT_TUNING, P_TUNING   embeddings in front of the encoder's; those that peft keeps for a decoder it never uses
    PREFIX_TUNING             keys and values that the cache of each decoder layer begins with

Source: peft 0.21, ``peft_model.py`` (``PeftModelForSeq2SeqLM``, ``get_prompt``): with two submodules the tables of a
prefix are laid out twice, one after the other, and layer i gets numbers 4 i and 4 i + 1 of that sequence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import VIRTUAL_TOKENS, Architecture, prefix_name
from t5edge.bundle.files import sha256_of
from t5edge.bundle.records import NO_PROMPT, PREFIX_TUNING, PromptFacts
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.adapter_settings import base_of, kind_of, read_config
from t5edge.exporter.checkpoint.adapters import find_folder, open_weights, weights_in
from t5edge.exporter.checkpoint.hub import ADAPTER_CONFIG
from t5edge.exporter.checkpoint.stores import FLOATS, StoredTensor, summary

if TYPE_CHECKING:
    import torch

    from t5edge.bundle.ports import Limits
    from t5edge.exporter.checkpoint.checkpoint import Checkpoint

KINDS = ("PROMPT_TUNING", "P_TUNING", PREFIX_TUNING)
REFUSED = {
    "MULTITASK_PROMPT_TUNING": "forward() and generate() of peft differ on it; save the prompt of one task as "
    "PROMPT_TUNING, its embeddings times its columns and rows",
    "CPT": "it is for decoders alone",
    "ADAPTION_PROMPT": "it changes the attention of Llama models",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
WEIGHTS = "prompt_embeddings"
"""The one tensor of a saved prompt."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: what it is called, where it lies, and its numbers, [tokens of all submodules, width].

    ``halves``: of a prefix, how many tables of keys or values a row holds.
    """

    name: str
    source: str
    revision: str | None
    kind: str
    sha256: str
    tokens: int
    embeddings: torch.Tensor
    heads: int
    halves: int

    def facts(self, first_id: int) -> PromptFacts:
        return PromptFacts(self.name, self.source, self.revision, self.kind, self.sha256, self.tokens, first_id)

    def prefix(self, place: int) -> torch.Tensor:
        """Keys or values number ``place`` of a prefix, [heads, tokens, d_kv]."""
        rows = self.embeddings.unflatten(1, (self.halves, self.heads, -1))
        return rows[:, place % self.halves].transpose(0, 1)


def open_prompt(given: str) -> Prompt:
    """The prompt that ``given`` means: a folder or a hub id, with ``NAME=`` in front or under its own last part.

    Raises:
        UserError: nothing of that name, no network, a damaged file, or a type of prompt that is not exact here.
    """
    name, equals, place = given.partition("=")
    if not equals:
        place, name = given, PurePath(given.partition("@")[0]).name
    if not NAME.fullmatch(name) or name == NO_PROMPT:
        reserved = f"'{NO_PROMPT}' means no prompt" if name == NO_PROMPT else "letters, digits, '.', '_' and '-'"
        raise UserError(f"--prompt {given}: '{name}' is no name for a prompt ({reserved}); pass NAME=DIR.")
    return prompt_in(name, *find_folder(place, "--prompt"))


def prompt_in(name: str, folder: Path, source: str, revision: str | None = None) -> Prompt:
    """The prompt in ``folder`` under a name.

    Raises:
        UserError: see ``open_prompt``.
    """
    config = read_config(folder)
    if config is None:
        raise UserError(
            f"'{source}' has no valid {ADAPTER_CONFIG}; --prompt takes what peft's save_pretrained() wrote."
        )
    base = base_of(folder)
    where = f"'{source}' is a PEFT adapter of '{base or 'an unnamed model'}' of type {kind_of(config) or 'unknown'}"
    _require_kind(config, where)
    path = weights_in(folder, source, base)
    store = open_weights(path)
    if list(store.tensors) != [WEIGHTS] or store.tensors[WEIGHTS].dtype not in FLOATS:
        raise UserError(f"{where} with {summary(list(store.tensors))}; expected '{WEIGHTS}' and nothing else.")
    tokens, heads, layers = (_size(config, key, where) for key in ("num_virtual_tokens", *SIZES))
    embeddings = store.read(WEIGHTS).float()
    prompt = Prompt(name, source, revision, kind_of(config), sha256_of(path), tokens, embeddings, heads, 2 * layers)
    rows = tokens if prompt.kind == PREFIX_TUNING else max(tokens, len(embeddings))
    if embeddings.ndim != 2 or len(embeddings) != rows or not bool(embeddings.isfinite().all()):
        raise UserError(f"{where} whose '{WEIGHTS}' is no finite matrix of {tokens} virtual tokens; save it again.")
    return prompt


SIZES = ("num_attention_heads", "num_layers")


def _require_kind(config: Mapping[str, Any], where: str) -> None:
    """Raises: UserError for what peft computes otherwise than the graphs would."""
    kind, submodules = kind_of(config), config.get("num_transformer_submodules")
    if kind not in KINDS:
        why = REFUSED.get(kind, "it is no prompt; --adapter merges LORA, LOHA, LOKR and IA3")
        raise UserError(f"{where}, which --prompt does not take: {why}.")
    task = str(config.get("task_type") or "none").removeprefix("TaskType.")
    if task != "SEQ_2_SEQ_LM":
        raise UserError(f"{where} for the task {task}; prompts of SEQ_2_SEQ_LM, models that generate, are exported.")
    if kind == PREFIX_TUNING and submodules != 2:
        said = f"with num_transformer_submodules = {submodules}"
        raise UserError(f"{where} {said}: peft mixes up both attentions of a decoder there; train it with 2.")


def _size(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise UserError(f"{where} whose {ADAPTER_CONFIG} has {key} = {value!r}; save the adapter again.")
    return value


class PromptedTensors:
    """The tensors of a checkpoint under their canonical names, with tables of prompts beside them."""

    def __init__(self, base: Checkpoint, prompts: Sequence[Prompt], architecture: Architecture) -> None:
        self._base, self._prompts = base, prompts
        self._tables = _tables(prompts, architecture)
        self.tensors = {name: StoredTensor(base.shape(name), base.dtype(name)) for name in base.names()}
        self.tensors |= {name: StoredTensor(tuple(table.shape), "float32") for name, table in self._tables.items()}

    def read(self, name: str) -> torch.Tensor:
        """[out, in] on the CPU; tables of prompts in float32."""
        return self._tables[name] if name in self._tables else self._base.read(name)

    def fingerprint(self) -> Any:
        return [self._base.content_key(), [[prompt.name, prompt.sha256] for prompt in self._prompts]]


def _tables(prompts: Sequence[Prompt], architecture: Architecture) -> dict[str, torch.Tensor]:
    """Virtual tokens [all, d_model]; of each decoder layer [prefixes + 1, heads * longest * d_kv], row 0 for none."""
    import torch

    a, found = architecture, dict[str, torch.Tensor]()
    if a.virtual_tokens:
        parts = [prompt.embeddings[: prompt.tokens] for prompt in prompts if prompt.kind != PREFIX_TUNING]
        found[VIRTUAL_TOKENS] = torch.cat(parts).contiguous()
    prefixes = [prompt for prompt in prompts if prompt.kind == PREFIX_TUNING]
    for layer in range(a.decoder_layers if prefixes else 0):
        for place, half in enumerate(("key", "value")):
            table = torch.zeros(len(prefixes) + 1, a.num_heads, a.prefix_length, a.d_kv)
            for row, prompt in enumerate(prefixes, start=1):
                table[row, :, a.prefix_length - prompt.tokens :] = prompt.prefix(4 * layer + place)
            found[prefix_name(layer, half)] = table.flatten(1)
    return found


def with_prompts(checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Checkpoint:
    """``checkpoint`` with prompts, each of which has ids of its own.

    Raises:
        UserError: a prompt of another model, two of one name, or a model without a decoder.
    """
    if not prompts:
        return checkpoint
    a = checkpoint.architecture
    if a.encoder_alone:
        raise UserError(f"'{checkpoint.source}' is an encoder alone, and prompts are for models that generate.")
    if checkpoint.prompts:
        raise UserError("--variant is a prompt already; name its base model there, and every prompt with --prompt.")
    twice = [name for name, count in Counter(prompt.name for prompt in prompts).items() if count > 1]
    if twice:
        raise UserError(f"two prompts are called '{twice[0]}'; name them: --prompt NAME=DIR.")
    for prompt in prompts:
        _require_fit(checkpoint, prompt)
    facts, next_id, next_prefix = [], a.vocab_size, -1
    for prompt in prompts:
        prefix = prompt.kind == PREFIX_TUNING
        facts.append(prompt.facts(next_prefix if prefix else next_id))
        next_id, next_prefix = next_id + (0 if prefix else prompt.tokens), next_prefix - prefix
    lengths = tuple(prompt.tokens for prompt in prompts if prompt.kind == PREFIX_TUNING)
    prompted = replace(a, virtual_tokens=next_id - a.vocab_size, prefix_lengths=lengths)
    tensors = PromptedTensors(checkpoint, prompts, prompted)
    return checkpoint.derived(tensors, prompted, prompts=tuple(facts))


def _require_fit(checkpoint: Checkpoint, prompt: Prompt) -> None:
    """Raises: UserError for numbers that ``checkpoint`` has no place for."""
    a, width = checkpoint.architecture, prompt.embeddings.shape[1]
    if prompt.kind != PREFIX_TUNING:
        problem = "" if width == a.d_model else f"virtual tokens of {width} numbers, the model {a.d_model}"
    else:
        fits = prompt.heads == a.num_heads and width == prompt.halves * a.inner_dim
        problem = "" if fits else f"{prompt.heads} heads in {prompt.halves} tables of {width} numbers together"
        problem += "" if fits else f", the model {a.num_heads} heads of {a.d_kv} in {2 * a.decoder_layers}"
        if fits and prompt.halves < 2 * a.decoder_layers:
            problem = f"keys and values of {prompt.halves // 2} layers, the decoder {a.decoder_layers} layers"
    if problem:
        raise UserError(f"the prompt '{prompt.source}' does not fit '{checkpoint.source}': it has {problem}.")


def require_room(prompts: Sequence[PromptFacts], limits: Limits) -> None:
    """Raises: UserError for prompts that leave no room for a text within the limits."""
    for prompt in prompts:
        side, longest = (
            ("target", limits.max_target_length) if prompt.first_id < 0 else ("source", limits.max_source_length)
        )
        if prompt.tokens + 2 > longest:
            said = f"the prompt '{prompt.name}' has {prompt.tokens} virtual tokens"
            raise UserError(f"{said}, and --max-{side}-length {longest} leaves no room behind them; raise it.")
