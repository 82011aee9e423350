"""The PyTorch model that a bundle is measured against."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import VIRTUAL_TOKENS, Architecture
from t5edge.exporter.family.config import config_from_architecture
from t5edge.exporter.reference.cache import cache_keyword, new_cache
from t5edge.exporter.reference.heads import WithDecoder, head_logits, shifted_right
from t5edge.exporter.reference.prompts import by_prefix, cache_of, prefix_states, prompted_embedding
from t5edge.exporter.reference.protocol import Outputs, Weights
from t5edge.exporter.reference.sentence import sentence_embedding

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.reference.heads import Decode
    from t5edge.exporter.reference.texts import Batch
    from t5edge.runtime.generation.step import Tokens


def build_torch_model(checkpoint: Weights, dtype: torch.dtype, *, keep_wo_float32: bool = False) -> Any:
    """The transformers model of the checkpoint in ``dtype``, on the CPU, in eval mode, with eager attention.

    Tying and the scale of the logits follow the checkpoint's facts, not transformers' own reading of the
    config. Weights already stored in ``dtype`` stay mapped from disk. ``keep_wo_float32`` keeps the FFN
    output projections in float32, as transformers' ``from_pretrained`` does for float16.

    Returns:
        ``UMT5ForConditionalGeneration`` when every layer has its own position bias, else
        ``T5ForConditionalGeneration``; of an encoder alone ``UMT5EncoderModel`` or ``T5EncoderModel``.
    """
    model, prompts = build_meta_model(checkpoint.architecture), checkpoint.architecture.prompt_shapes()
    further = checkpoint.architecture.further_shapes()
    for name in (name for name in checkpoint.names() if name not in further):
        _set_weight(model, name, checkpoint.read(name).to(stored_dtype(name, dtype, keep_wo_float32)))
    _tie(model, checkpoint.architecture.tied)
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not empty, empty
    if prompts:
        learnt = checkpoint.read(VIRTUAL_TOKENS).to(dtype) if VIRTUAL_TOKENS in prompts else None
        model.encoder.embed_tokens = prompted_embedding(model.shared.weight, learnt)
    if not checkpoint.architecture.encoder_alone:
        model.generation_config = _generation_config(checkpoint.generation_config)
    return model.eval()


def stored_dtype(name: str, dtype: torch.dtype, keep_wo_float32: bool) -> torch.dtype:
    """The dtype of a weight in a model of ``dtype``."""
    import torch

    return torch.float32 if keep_wo_float32 and name.endswith(".wo.weight") else dtype


def build_meta_model(architecture: Architecture) -> Any:
    """The same model without weights, on the meta device, in eval mode: for tracing and for counting."""
    import torch
    import transformers

    per_layer = architecture.per_layer_bias
    family = "UMT5" if per_layer else "T5"
    config_class = getattr(transformers, f"{family}Config")
    head = "EncoderModel" if architecture.encoder_alone else "ForConditionalGeneration"
    model_class = getattr(transformers, f"{family}{head}")
    config = config_class(**config_from_architecture(architecture, "umt5" if per_layer else "t5"))
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = model_class(config)
    # Where forward() looks for the logit scale: T5 has its own flag, UMT5 reads the tying flag.
    setattr(
        model.config,
        "tie_word_embeddings" if per_layer else "scale_decoder_outputs",
        architecture.scale_logits,
    )
    _tie(model, architecture.tied)
    return model.eval()


def _set_weight(model: Any, name: str, tensor: torch.Tensor) -> None:
    """Replaces the parameter called ``name`` by ``tensor`` ``[out, in]``, sharing its memory."""
    import torch

    path, _, leaf = name.rpartition(".")
    old = model.get_parameter(name)
    assert old.shape == tensor.shape, (name, old.shape, tensor.shape)
    setattr(model.get_submodule(path), leaf, torch.nn.Parameter(tensor, requires_grad=False))


def _tie(model: Any, tied: bool) -> None:
    """One embedding table for both stacks, and for the output layer exactly if ``tied``."""
    import torch

    model.encoder.embed_tokens.weight = model.shared.weight
    if not hasattr(model, "decoder"):
        return
    model.decoder.embed_tokens.weight = model.shared.weight
    if tied:
        model.lm_head.weight = model.shared.weight
    elif model.lm_head.weight is model.shared.weight:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight), requires_grad=False)


def _generation_config(settings: dict[str, Any]) -> Any:
    import transformers

    make: Any = transformers.GenerationConfig
    return make(**settings)


class WholeReference:
    """The transformers model of a checkpoint, as outputs of whole batches and as ``generate``."""

    def __init__(self, checkpoint: Weights, dtype: torch.dtype, *, keep_wo_float32: bool = False) -> None:
        self.weights = checkpoint
        self.model = build_torch_model(checkpoint, dtype, keep_wo_float32=keep_wo_float32)
        speed_up_float16(self.model)
        self._dtype = dtype
        self._alone = checkpoint.architecture.encoder_alone
        self._cache = "" if self._alone else cache_keyword(self.model.forward)

    def outputs(self, batches: Mapping[str, Batch], cross: Container[str] = ()) -> Iterator[tuple[str, Outputs]]:
        """See ``Reference.outputs``."""
        for name, batch in batches.items():
            parts = [
                (rows, self._outputs(batch.of_rows(rows), name in cross, prefix))
                for prefix, rows in by_prefix(batch.input_ids)
            ]
            yield name, parts[0][1] if len(parts) == 1 else joined_outputs(parts)

    def _outputs(self, batch: Batch, with_cross: bool, prefix: int) -> Outputs:
        import torch

        seen = (batch.attention_mask != 0).astype(np.int64)  # 2 at prompts that are not pooled
        source = {"input_ids": torch.from_numpy(batch.input_ids), "attention_mask": torch.from_numpy(seen)}
        with torch.inference_mode():
            if self._alone:
                return encoder_outputs(self.weights, self.model(**source).last_hidden_state, batch, self._decode)
            cache = self._new_cache(prefix, len(batch.input_ids))
            found = self.model(
                **source,
                decoder_input_ids=torch.from_numpy(batch.decoder_input_ids),
                use_cache=True,
                **{self._cache: cache},
            )
            cross = {
                f"present.{index}.encoder.{half}": getattr(layer, f"{half}s").float().numpy()
                for index, layer in enumerate(cache.cross_attention_cache.layers if with_cross else ())
                for half in ("key", "value")
            }
            hidden = found.encoder_last_hidden_state
            return Outputs(hidden.float().numpy(), cross, found.logits.float().numpy())

    @cached_property
    def _decoder(self) -> Any:
        """The decoder below a head."""
        return build_torch_model(WithDecoder(self.weights), self._dtype).decoder

    def _decode(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """The decoder's output over the source, [batch, source, d_model]; see ``heads.Decode``."""
        import torch

        found: torch.Tensor = self._decoder(
            input_ids=torch.from_numpy(shifted_right(batch, self.weights.architecture.decoder_start_token_id)),
            encoder_hidden_states=hidden,
            encoder_attention_mask=torch.from_numpy(batch.attention_mask),
            use_cache=False,
        ).last_hidden_state
        return found

    def _new_cache(self, prefix: int, rows: int) -> Any:
        return cache_of(prefix_states(self.weights, prefix, self._dtype), rows)

    def generate(self, input_ids: Tokens, attention_mask: Tokens, **settings: Any) -> Tokens:
        """What transformers' ``generate`` gives: int64 [batch, length], start token first.

        Rows with different prefixes run apart; shorter ones end in padding.
        """
        found = {
            tuple(rows): self._generate(input_ids[rows], attention_mask[rows], prefix, settings)
            for prefix, rows in by_prefix(input_ids)
        }
        each = sum(map(len, found.values())) // len(input_ids)
        longest = max(tokens.shape[1] for tokens in found.values())
        pad = self.weights.architecture.pad_token_id
        joined: Tokens = np.full((len(input_ids), each, longest), pad, np.int64)
        for rows, tokens in found.items():
            joined[list(rows), :, : tokens.shape[1]] = tokens.reshape(len(rows), each, -1)
        return joined.reshape(-1, longest)

    def _generate(self, input_ids: Tokens, attention_mask: Tokens, prefix: int, settings: Mapping[str, Any]) -> Tokens:
        import torch

        prepare = self.model.prepare_inputs_for_generation

        def prepare_with_prefix(*arguments: Any, **given: Any) -> Any:
            """A prefix is no cache of tokens that transformers has seen: it comes when it has cut them, as in peft."""
            found = prepare(*arguments, **given)
            if found[self._cache].get_seq_length() == 0:
                found[self._cache] = self._new_cache(prefix, len(found["decoder_input_ids"]))
            return found

        self.model.prepare_inputs_for_generation = prepare_with_prefix if prefix else prepare
        try:
            found = self.model.generate(
                torch.from_numpy(input_ids),
                attention_mask=torch.from_numpy(attention_mask),
                **{self._cache: new_cache()},  # transformers sizes its own by the encoder's depth
                **settings,
            )
        finally:
            self.model.prepare_inputs_for_generation = prepare
        tokens: Tokens = found.numpy()
        return tokens


def joined_outputs(parts: Sequence[tuple[np.ndarray, Outputs]]) -> Outputs:
    """The outputs of a batch from those of some of its rows each."""

    def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
        found = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
        for (rows, _), array in zip(parts, arrays, strict=True):
            found[rows] = array
        return found

    outputs = [part for _, part in parts]
    cross = {name: joined([part.cross[name] for part in outputs]) for name in outputs[0].cross}
    return Outputs(joined([part.hidden for part in outputs]), cross, joined([part.logits for part in outputs]))


def encoder_outputs(weights: Weights, hidden: torch.Tensor, batch: Batch, decode: Decode) -> Outputs:
    """The outputs of an encoder alone, from its last hidden state [batch, source, d_model]."""
    import torch

    embedding = None
    if weights.sentence is not None:
        mask = torch.from_numpy(batch.attention_mask)
        embedding = sentence_embedding(hidden.float(), mask, weights.sentence.facts, weights.read).numpy()
    labels = head_logits(weights, hidden, batch, decode)
    return Outputs(hidden.float().numpy(), {}, np.zeros((len(hidden), 0, 0), np.float32), embedding, labels)


WIDE_ROWS = 32
"""From so many rows on, widening the weight costs less than PyTorch's float16 kernel."""


def speed_up_float16(model: Any) -> None:
    """Let float16 layers multiply in float32 and round once, as float16 kernels with float32 accumulation do.

    PyTorch's own float16 matmul on the CPU takes ten times as long as float32, for the same numbers.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.dtype == torch.float16:
            setattr(module, "forward", partial(wide_linear, module.weight))  # noqa: B010 - mypy knows a method


def wide_linear(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``x`` [..., in] float16 times ``weight`` [out, in] float16, rounded once: [..., out] float16."""
    import torch

    if x.numel() < WIDE_ROWS * x.shape[-1]:
        return torch.nn.functional.linear(x, weight)
    return torch.nn.functional.linear(x.float(), weight.float()).to(weight.dtype)
