"""Run transformers' blocks one at a time, so that a model of any size passes through PyTorch in little memory.

Each block is made on the meta device, gets its layer's weights, runs, and is dropped. The math is transformers' own;
only the loop around the blocks is ours, and the position bias is passed in, as in the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Stack
from t5edge.exporter.graph.trace import block_module
from t5edge.exporter.reference.cache import cache_keyword
from t5edge.exporter.reference.heads import WithDecoder, shifted_right
from t5edge.exporter.reference.prompts import PaddedPrefixes, embed_source
from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.whole import encoder_outputs, speed_up_float16, stored_dtype, wide_linear

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch

Bias = Callable[[int], "torch.Tensor"]
OnBlock = Callable[[Stack, int, Any], None]
"""Called with each block after its weights are in and before it runs: the place for hooks."""
VOCABULARY_ROWS = 8192
"""Rows of the output layer that are multiplied at a time."""


def _as_stored(rows: torch.Tensor) -> torch.Tensor:
    return rows


@dataclass
class StreamedReference:
    """A checkpoint run layer by layer in ``dtype`` on the CPU."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    on_block: OnBlock | None = None
    keep_wo_float32: bool = field(default=False, kw_only=True)

    def outputs(self, batches: Mapping[str, Batch], cross: Container[str] = ()) -> Iterator[tuple[str, Outputs]]:
        """See ``Reference.outputs``; both stacks are read once for all batches."""
        encoded = self.encode_all(list(batches.values()))
        keys_values = {
            name: self.cross_keys_values(hidden) for name, hidden in zip(batches, encoded, strict=True) if name in cross
        }
        if self.checkpoint.architecture.encoder_alone:
            for (name, batch), source in zip(batches.items(), encoded, strict=True):
                yield name, encoder_outputs(self.checkpoint, source, batch, self._decode)
            return
        decoded = self.decode_all(list(batches.values()), encoded)
        for name, source, target in zip(batches, encoded, decoded, strict=True):
            yield name, Outputs(source.float().numpy(), keys_values.get(name, {}), self.logits(target).numpy())

    def _decode(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """The output of the decoder below a head; see ``heads.Decode``."""
        view: Any = WithDecoder(self.checkpoint)
        fed = replace(batch, decoder_input_ids=shifted_right(batch, view.architecture.decoder_start_token_id))
        return StreamedReference(view, self.dtype, keep_wo_float32=self.keep_wo_float32).decode(fed, hidden)

    def encode(self, batch: Batch) -> torch.Tensor:
        """The encoder's last hidden state, [batch, source, d_model]."""
        return self.encode_all([batch])[0]

    def decode(self, batch: Batch, encoded: torch.Tensor) -> torch.Tensor:
        """The decoder's normed hidden state, [batch, target, d_model], teacher-forced."""
        return self.decode_all([batch], [encoded])[0]

    def encode_all(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """``encode`` for several batches; each layer is loaded once."""
        masks = [self.padding(batch.attention_mask) for batch in batches]
        hidden = [self.embed(batch.input_ids) for batch in batches]
        for layer, block, bias in self.blocks("encoder"):
            for index, mask in enumerate(masks):
                hidden[index] = self.run_block(block, hidden[index], bias(hidden[index].shape[1]) + mask)
                self._after("encoder", layer, hidden[index])
            del block  # before the next is read
        return [self.norm("encoder", states) for states in hidden]

    def decode_all(self, batches: Sequence[Batch], encoded: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """``decode`` for several batches; each layer is loaded once."""
        masks = [self.padding(batch.attention_mask) for batch in batches]
        hidden = [self.embed(batch.decoder_input_ids) for batch in batches]
        prefixes = [self._prefixes(batch.input_ids) for batch in batches]
        for layer, block, bias in self.blocks("decoder"):
            for index, (states, prefix) in enumerate(zip(hidden, prefixes, strict=True)):
                length = prefix.length + states.shape[1]
                own = prefix.hide(bias(length) + self.causal(length))
                cache = prefix.cache(layer, self.dtype)
                hidden[index] = self.run_block(block, states, own, encoded[index], masks[index], *cache)
                self._after("decoder", layer, hidden[index])
            del block
        return [self.norm("decoder", states) for states in hidden]

    def _prefixes(self, input_ids: np.ndarray) -> PaddedPrefixes:
        """What rows of ``input_ids`` int64 [batch, source] put before a decoder's own positions."""
        return PaddedPrefixes(self.checkpoint, input_ids)

    def cross_keys_values(self, encoded: torch.Tensor) -> dict[str, np.ndarray]:
        """Float32 [batch, heads, source, d_kv] of every decoder layer, by port name."""
        a = self.checkpoint.architecture
        found: dict[str, np.ndarray] = {}
        for layer in range(a.decoder_layers):
            for half in ("key", "value"):
                name = f"decoder.block.{layer}.layer.1.EncDecAttention.{half[0]}.weight"
                projected = wide_linear(self.checkpoint.read(name).to(self.dtype), encoded)
                heads = projected.unflatten(-1, (a.num_heads, a.d_kv)).transpose(1, 2)
                found[f"present.{layer}.encoder.{half}"] = heads.float().numpy()
        return found

    def logits(self, normed: torch.Tensor, stored: Callable[[Any], Any] = _as_stored) -> torch.Tensor:
        """Float32 [batch, target, vocab] from ``decode``'s result, a slice of the vocabulary at a time.

        ``stored`` changes rows [tokens, d_model] of the output layer before they are multiplied.
        """
        import torch

        a = self.checkpoint.architecture
        scaled = normed * a.logit_scale
        weight = self.checkpoint.read("shared.weight" if a.tied else "lm_head.weight")
        slices = (weight[start : start + VOCABULARY_ROWS] for start in range(0, a.vocab_size, VOCABULARY_ROWS))
        return torch.cat([wide_linear(stored(rows.to(normed.dtype)), scaled).float() for rows in slices], dim=-1)

    def causal(self, length: int) -> torch.Tensor:
        """Additive mask [length, length] of what comes later."""
        import torch

        return torch.full((length, length), torch.finfo(self.dtype).min, dtype=self.dtype).triu(1)

    def _after(self, stack: Stack, layer: int, hidden: torch.Tensor) -> None:
        """A place for subclasses to look at each layer's output."""

    def run_block(self, block: Any, hidden: Any, bias: Any, encoded: Any = None, cross: Any = None, *cache: Any) -> Any:
        """A block's hidden states [batch, length, d_model]."""
        import torch

        with torch.inference_mode():
            kept = {cache_keyword(block.forward): cache[0]} if cache else {}
            return block(hidden, None, bias, encoded, None, cross, **kept)[0]

    def blocks(self, stack: Stack) -> Iterator[tuple[int, Any, Bias]]:
        """Layer by layer its block, and its position bias by length, which is made when asked for: batches are many."""
        architecture = self.checkpoint.architecture
        for layer in range(architecture.layers(stack)):
            bias = partial(self.bias, stack, layer if architecture.per_layer_bias else 0)
            block = self._block(stack, layer)
            if self.on_block is not None:
                self.on_block(stack, layer, block)
            yield layer, block, bias
            del block

    def _block(self, stack: Stack, layer: int) -> Any:
        prefix = f"{stack}.block.{layer}."
        names = self.checkpoint.architecture.block_shapes(stack, layer)
        block = block_module(self.checkpoint.architecture, stack == "decoder")
        state = {
            name: self.checkpoint.read(prefix + name).to(stored_dtype(name, self.dtype, self.keep_wo_float32))
            for name in names
            if not name.endswith("relative_attention_bias.weight")
        }
        block.load_state_dict(state, assign=True, strict=True)
        speed_up_float16(block)
        return block.eval()

    def bias(self, stack: Stack, layer: int, length: int) -> torch.Tensor:
        """Position bias without any mask, [1, heads, length, length], by transformers' own bucket arithmetic."""
        import torch
        from transformers.models.t5.modeling_t5 import T5Attention

        a = self.checkpoint.architecture
        positions = torch.arange(length)
        buckets = T5Attention._relative_position_bucket(
            positions[None, :] - positions[:, None],
            bidirectional=stack == "encoder",
            num_buckets=a.num_buckets,
            max_distance=a.max_distance,
        )
        weight = self.checkpoint.read(f"{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight").to(
            self.dtype
        )
        return weight[buckets].permute(2, 0, 1)[None]

    def padding(self, attention_mask: np.ndarray) -> torch.Tensor:
        """Additive mask [batch, 1, 1, source] of int64 [batch, source]."""
        import torch

        hidden = torch.from_numpy(attention_mask)[:, None, None, :] == 0
        return torch.zeros(hidden.shape, dtype=self.dtype).masked_fill(hidden, torch.finfo(self.dtype).min)

    def embed(self, ids: np.ndarray) -> torch.Tensor:
        """[batch, length, d_model] for int64 ids [batch, length]."""
        return embed_source(self.checkpoint, ids, self.dtype)

    def norm(self, stack: Stack, hidden: torch.Tensor) -> torch.Tensor:
        """The stack's final norm, [batch, length, d_model]."""
        import torch

        weight = self.checkpoint.read(f"{stack}.final_layer_norm.weight").to(self.dtype)
        variance = hidden.to(torch.float32).pow(2).mean(-1, keepdim=True)
        normed = hidden * torch.rsqrt(variance + self.checkpoint.architecture.norm_epsilon)
        return weight * normed.to(self.dtype)
