"""The exact power-of-two rescale that keeps fp16 in range.

RMS norm is scale-invariant. Dividing everything that is added to the residual stream (the embeddings, every attention
``o``, every ``wo``) by 2^k and every norm's epsilon by 2^2k leaves each norm's output, and so the logits, bit-
identical in float32, while the residual itself shrinks by 2^k. Inside the FFN the same trick: ``wi_1 / 2^t`` and ``wo
* 2^t`` (plain ReLU: ``wi / 2^t``). k is chosen per stack, t per layer, the smallest that leave ``HEADROOM`` over the
largest activation seen on the calibration texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import Stack
from t5edge.bundle.records import RescaleFacts, StackRescale
from t5edge.errors import UserError

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch

FP16_MAX = 65504.0
HEADROOM = 4.0
"""The largest activation seen stays this factor below the end of fp16's range."""


@dataclass(frozen=True)
class StackScale:
    """k of one stack's residual stream and t of each of its FFNs, as exponents of two."""

    k: int = 0
    t: tuple[int, ...] = ()
    t_source: str = ""
    largest_residual: float | None = None
    largest_ffn: tuple[float, ...] = ()

    @property
    def epsilon_factor(self) -> float:
        return float(2.0 ** (-2 * self.k))

    def factor(self, name: str, layer: int) -> float:
        """What to multiply a tensor of the checkpoint with."""
        role = name.rsplit(".", 2)[-2]
        t = self.t[layer] if self.t else 0
        if role == "o":
            return float(2.0**-self.k)
        if role == "wo":
            return float(2.0 ** (t - self.k))
        return float(2.0**-t) if role == self.t_source else 1.0

    def facts(self) -> StackRescale:
        """For the manifest."""
        largest = None if self.largest_residual is None else self.largest_residual / 2.0**self.k
        headroom = None if not largest else FP16_MAX / largest
        return StackRescale(self.k, self.t, self.largest_residual, self.largest_ffn, headroom)


@dataclass(frozen=True)
class Rescale:
    """Both stacks. The default changes nothing."""

    encoder: StackScale = field(default_factory=StackScale)
    decoder: StackScale = field(default_factory=StackScale)

    def facts(self) -> RescaleFacts:
        """For the manifest."""
        return RescaleFacts(self.encoder.facts(), self.decoder.facts())


def exponent(largest: float, headroom: float = HEADROOM) -> int:
    """The smallest e >= 0 with ``largest / 2^e * headroom <= 65504``."""
    if not math.isfinite(largest):
        raise ValueError(f"the largest activation is {largest}")
    return max(0, math.ceil(math.log2(max(largest * headroom / FP16_MAX, 2.0**-60))))


@dataclass
class _Ranges:
    """Largest magnitudes of one stack: the residual stream with everything added to it, and each layer's FFN."""

    residual: float = 0.0
    ffn: dict[int, float] = field(default_factory=dict)

    def see_residual(self, tensor: Any) -> None:
        self.residual = _larger(self.residual, tensor)

    def see_ffn(self, layer: int, tensor: Any) -> None:
        self.ffn[layer] = _larger(self.ffn.get(layer, 0.0), tensor)

    def watch(self, layer: int, block: Any) -> None:
        """See what ``block``, a layer of transformers' T5, computes from now on."""
        block.register_forward_pre_hook(lambda _, args: self.see_residual(args[0]))
        block.register_forward_hook(lambda _, __, out: self.see_residual(out[0]))
        for sub in block.layer:
            sub.register_forward_hook(lambda _, __, out: self.see_residual(out[0] if isinstance(out, tuple) else out))
            attention = getattr(sub, "SelfAttention", None) or getattr(sub, "EncDecAttention", None)
            if attention is not None:
                attention.o.register_forward_hook(lambda _, __, out: self.see_residual(out))
        ffn = block.layer[-1].DenseReluDense
        ffn.wo.register_forward_hook(lambda _, __, out: self.see_residual(out))
        ffn.wo.register_forward_pre_hook(lambda _, args: self.see_ffn(layer, args[0]))
        up = ffn.wi_1 if hasattr(ffn, "wi_1") else ffn.wi
        up.register_forward_hook(lambda _, __, out: self.see_ffn(layer, out))


def _larger(known: float, tensor: Any) -> float:
    lowest, highest = (float(bound) for bound in tensor.aminmax())
    largest = max(abs(lowest), abs(highest))
    return largest if largest > known or largest != largest else known


def measure_rescale(
    checkpoint: Checkpoint,
    batches: list[Batch],
    headroom: float = HEADROOM,
    on_layer: Callable[[], None] | None = None,
) -> Rescale:
    """Choose k and t from the activations that the texts cause, in float32, layer by layer.

    Raises:
        UserError: an activation is NaN or infinite in float32: the checkpoint itself is broken.
    """
    import torch

    from t5edge.exporter.reference.heads import WithDecoder, shifted_right
    from t5edge.exporter.reference.streamed import StreamedReference

    a = checkpoint.architecture
    stacks: tuple[Stack, ...] = ("encoder", "decoder") if a.head_layers else a.stacks
    ranges: dict[Stack, _Ranges] = {stack: _Ranges() for stack in stacks}

    def progress(stack: Stack, layer: int, block: Any) -> None:
        if on_layer is not None:
            on_layer()
        ranges[stack].watch(layer, block)

    reference = StreamedReference(checkpoint, torch.float32, progress)
    encoded = reference.encode_all(batches)
    if a.head_layers:
        fed = [replace(batch, decoder_input_ids=shifted_right(batch, a.decoder_start_token_id)) for batch in batches]
        view: Any = WithDecoder(checkpoint)
        StreamedReference(view, torch.float32, progress).decode_all(fed, encoded)
    elif not a.encoder_alone:
        reference.decode_all(batches, encoded)
    return Rescale(*(_stack_scale(checkpoint, stack, ranges[stack], headroom) for stack in ranges))


def _stack_scale(checkpoint: Checkpoint, stack: Stack, seen: _Ranges, headroom: float) -> StackScale:
    a = checkpoint.architecture
    largest = tuple(seen.ffn[layer] for layer in sorted(seen.ffn))
    if not all(math.isfinite(value) for value in (seen.residual, *largest)):
        raise UserError(
            f"the {stack} of '{checkpoint.source}' gives NaN or infinity in float32 on plain sentences; "
            "the checkpoint is broken, download or train it again."
        )
    homogeneous = a.gated or a.activation == "relu"
    return StackScale(
        k=exponent(seen.residual, headroom),
        t=tuple(exponent(value, headroom) if homogeneous else 0 for value in largest),
        t_source="wi_1" if a.gated else "wi",
        largest_residual=seen.residual,
        largest_ffn=largest,
    )
