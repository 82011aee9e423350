"""PyTorch, sublayer by sublayer: what each adds to the residual stream, in float32 and rounded as a precision says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Stack
from t5edge.bundle.precision import Precision
from t5edge.calibration.scheme import round_columns, scheme_for, table_scheme
from t5edge.exporter.reference.prompts import PaddedPrefixes
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.parity.localize.bounds import torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Step:
    """One sublayer: ``out = hidden + added``, float32 [batch, length, d_model]."""

    hidden: torch.Tensor
    added: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True)
class LayerRun:
    """One block, its inputs, and what float32 PyTorch made of them.

    ``bias`` and ``cross`` are additive masks [batch or 1, heads or 1, queries, keys]. ``encoded`` and ``cross`` are
    None in the encoder.
    """

    block: Any
    steps: Sequence[Step]
    bias: torch.Tensor
    encoded: torch.Tensor | None
    cross: torch.Tensor | None

    def keys_values(self, cross: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of self- or cross-attention, [batch, heads, length, d_kv], in the block's dtype."""
        import torch

        sub = self.block.layer[1 if cross else 0]
        attention = sub.EncDecAttention if cross else sub.SelfAttention
        with torch.inference_mode():
            source = self._narrow(self.encoded) if cross else sub.layer_norm(self._narrow(self.steps[0].hidden))
            halves = (projection(source) for projection in (attention.k, attention.v))
            key, value = (half.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2) for half in halves)
        return key, value

    def rerun(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(added, out) of each sublayer on the float32 inputs, rounded to the block's dtype as it is now."""
        import torch

        masks = (self._narrow(self.bias), self._narrow(self.encoded), self._narrow(self.cross))
        found = []
        with torch.inference_mode():
            for sub, step in zip(self.block.layer, self.steps, strict=True):
                hidden = self._narrow(step.hidden)
                added = contribution(sub, hidden, *masks)
                found.append((added, hidden + added))
        return found

    def _narrow(self, tensor: torch.Tensor | None) -> Any:
        """In the block's dtype; masks that are beyond its range become its lowest number."""
        import torch

        if tensor is None:
            return None
        dtype = self.block.layer[0].layer_norm.weight.dtype
        masked = tensor <= torch.finfo(torch.float32).min / 2
        return tensor.to(dtype).masked_fill(masked, torch.finfo(dtype).min)


def contribution(sub: Any, hidden: Any, bias: Any, encoded: Any, cross: Any) -> Any:
    """What transformers' sublayer adds to ``hidden`` [batch, length, d_model]: its own forward without the addition."""
    normed = sub.layer_norm(hidden)
    if hasattr(sub, "SelfAttention"):
        return sub.SelfAttention(normed, position_bias=bias)[0]
    if hasattr(sub, "EncDecAttention"):
        return sub.EncDecAttention(normed, key_value_states=encoded, position_bias=cross)[0]
    return sub.DenseReluDense(normed)


OnLayer = Callable[[Stack, int, LayerRun], None]


@dataclass
class SublayerReference(StreamedReference):
    """The streamed reference, which tells ``on_layer`` of every layer while its block is still in memory."""

    on_layer: OnLayer | None = None

    def _prefixes(self, input_ids: np.ndarray) -> PaddedPrefixes:
        """Layers are compared without learnt prefixes: what the cache begins with is compared elsewhere."""
        return super()._prefixes(np.maximum(input_ids, 0))

    def run_block(self, block: Any, hidden: Any, bias: Any, encoded: Any = None, cross: Any = None, *cache: Any) -> Any:
        import torch

        steps = []
        with torch.inference_mode():
            for sub in block.layer:
                added = contribution(sub, hidden, bias, encoded, cross)
                steps.append(Step(hidden, added, hidden + added))
                hidden = steps[-1].out
        self._latest = LayerRun(block, steps, bias, encoded, cross)
        return hidden

    def _after(self, stack: Stack, layer: int, hidden: Any) -> None:
        if self.on_layer is not None:
            self.on_layer(stack, layer, self._latest)

    def norm(self, stack: Stack, hidden: torch.Tensor) -> torch.Tensor:
        """The stack's final norm, [batch, length, d_model], in the dtype of ``hidden``."""
        return super().norm(stack, hidden).to(hidden.dtype)


def round_block(block: Any, precision: Precision) -> None:
    """Bring a float32 block to what the precision stores: its dtype, weights rounded to nearest, no calibration."""
    import torch

    block.to(torch_dtype(precision))
    if not precision.quantized:
        return
    for module in block.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(round_weight(module.weight.detach(), precision), requires_grad=False)
            if precision.quantize_activations:
                module.register_forward_pre_hook(lambda _, args: (_round_tensor(args[0]),))


def round_weight(weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    """``weight`` [out, in] after rounding to the precision's integers and back, in its own dtype."""
    scheme = scheme_for(precision, weight.shape[1], weight.shape[0])
    return weight if scheme is None else round_columns(weight.T, scheme).T.to(weight.dtype)


def round_embedding(rows: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Rows of the token table [tokens, d_model] as the precision stores them: 8 bits wherever anything is quantized."""
    return round_columns(rows.T, table_scheme(precision)).T.to(rows.dtype) if precision.quantized else rows


def _round_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 with one scale for the whole tensor."""
    scale = tensor.abs().amax().float().clamp(min=1e-30) / 127
    return ((tensor.float() / scale).round() * scale).to(tensor.dtype)
