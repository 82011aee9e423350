"""PyTorch, which every bundle is measured against: in float32, and at the bundle's compute dtype for scale.

An error of a 16-bit bundle counts in units of the error that PyTorch makes at that dtype on the same batch. PyTorch
has two ways to run such a model, all in that dtype or with the FFN output projections in float32 (transformers' own
habit for float16); the smaller error of the two is the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.errors import UserError
from t5edge.exporter.reference.texts import target_mask
from t5edge.exporter.reference.whole import build_torch_model
from t5edge.parity.limits import OwnErrors, ceiling
from t5edge.parity.measures import LogitErrors, compare_logits, relative_error

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch
    from t5edge.runtime.generation.step import Tokens


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch, float32.

    ``hidden`` [batch, source, d_model]; ``logits`` [batch, target, vocab]; ``cross`` by port name
    (``present.{i}.encoder.key``) [batch, heads, source, d_kv].
    """

    hidden: np.ndarray
    cross: Mapping[str, np.ndarray]
    logits: np.ndarray


@dataclass(frozen=True)
class OutputErrors:
    """Relative L2 errors of one batch against the reference, padding left out; ``cross`` is the worst tensor's."""

    hidden: float
    cross: float
    worst_cross: str
    logits: LogitErrors

    def own(self) -> OwnErrors:
        found = self.logits
        return OwnErrors(
            hidden=self.hidden,
            cross=self.cross,
            logits=found.relative,
            position=found.worst_position,
            log_probs=found.log_prob_relative,
            kl=float(found.kl.mean()),
        )


def compare_outputs(value: Outputs, reference: Outputs, batch: Batch, pad_token_id: int) -> OutputErrors:
    """Errors of ``value``; padded positions of source and target do not count."""
    source = batch.attention_mask.astype(bool)
    target = target_mask(batch.decoder_input_ids, pad_token_id)
    cross = {
        name: relative_error(value.cross[name].swapaxes(1, 2)[source], expected.swapaxes(1, 2)[source])
        for name, expected in reference.cross.items()
    }
    worst = max(cross, key=lambda name: cross[name])
    return OutputErrors(
        relative_error(value.hidden[source], reference.hidden[source]),
        cross[worst],
        worst,
        compare_logits(value.logits[target], reference.logits[target]),
    )


class TorchModel:
    """The transformers model of a checkpoint, as outputs of whole batches and as ``generate``."""

    def __init__(self, checkpoint: Checkpoint, dtype: Any, *, keep_wo_float32: bool = False) -> None:
        self.model = build_torch_model(checkpoint, dtype, keep_wo_float32=keep_wo_float32)
        _speed_up_float16(self.model)

    def outputs(self, batch: Batch) -> Outputs:
        """Teacher-forced, in one pass."""
        import torch

        cache = new_cache()
        with torch.inference_mode():
            found = self.model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
                decoder_input_ids=torch.from_numpy(batch.decoder_input_ids),
                past_key_values=cache,
                use_cache=True,
            )
            cross = {
                f"present.{index}.encoder.{half}": getattr(layer, f"{half}s").float().numpy()
                for index, layer in enumerate(cache.cross_attention_cache.layers)
                for half in ("key", "value")
            }
            hidden = found.encoder_last_hidden_state
            return Outputs(hidden.float().numpy(), cross, found.logits.float().numpy())

    def generate(self, input_ids: Tokens, attention_mask: Tokens, **settings: Any) -> Tokens:
        """What transformers' ``generate`` gives: int64 [batch, length], start token first."""
        import torch

        found = self.model.generate(
            torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            past_key_values=new_cache(),  # transformers 5.23 sizes its own by the encoder's depth
            **settings,
        )
        tokens: Tokens = found.numpy()
        return tokens


WIDE_ROWS = 32
"""From so many rows on, widening the weight costs less than PyTorch's float16 kernel."""


def _speed_up_float16(model: Any) -> None:
    """Let float16 layers multiply in float32 and round once, as float16 kernels with float32 accumulation do.

    PyTorch's own float16 matmul on the CPU takes ten times as long as float32, for the same numbers.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.dtype == torch.float16:
            setattr(module, "forward", partial(_wide_linear, module.weight))  # noqa: B010 - mypy knows a method


def _wide_linear(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``x`` [..., in] float16 times ``weight`` [out, in] float16, rounded once: [..., out] float16."""
    import torch

    if x.numel() < WIDE_ROWS * x.shape[-1]:
        return torch.nn.functional.linear(x, weight)
    return torch.nn.functional.linear(x.float(), weight.float()).to(weight.dtype)


SMALL = 20e6
"""Parameters below which one thread is as fast as many."""


@contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """One PyTorch thread for a small model: on a busy machine, threads that wait for each other take far longer."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if parameters < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def new_cache() -> Any:
    """An empty cache that grows with the decoder's depth, whatever the encoder's."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


@dataclass(frozen=True)
class Reference:
    """Float32 PyTorch on every batch; ``own`` errors at a 16-bit dtype are empty where none was asked for."""

    model: TorchModel
    outputs: Mapping[str, Outputs]
    own: Mapping[str, OwnErrors]

    def own_of(self, *names: str) -> OwnErrors | None:
        """The largest own error over some batches: one short batch may be lucky."""
        known = [self.own[name] for name in names if name in self.own]
        if not known:
            return None
        return OwnErrors(*(max(getattr(errors, entry.name) for errors in known) for entry in fields(OwnErrors)))


def measure_reference(
    checkpoint: Checkpoint, narrow: str | None, batches: Mapping[str, Batch], on_batch: Callable[[], None]
) -> Reference:
    """Run PyTorch on ``batches``: float32, then both ways of its own at the dtype ``narrow``, if any.

    One 16-bit model is in memory at a time. ``on_batch`` is called ``passes(narrow)`` times for each batch.

    Raises:
        UserError: float32 PyTorch itself gives NaN or infinity.
    """
    import torch

    exact = TorchModel(checkpoint, torch.float32)
    outputs: dict[str, Outputs] = {}
    for name, batch in batches.items():
        outputs[name] = exact.outputs(batch)
        if not np.isfinite(outputs[name].logits).all():
            raise UserError(
                f"'{checkpoint.source}' gives NaN or infinity in float32 PyTorch on plain sentences; "
                "the checkpoint is broken, download or train it again."
            )
        on_batch()
    own: dict[str, OwnErrors] = {}
    for keep in (False, True) if narrow is not None else ():
        assert narrow is not None
        model = TorchModel(checkpoint, getattr(torch, narrow), keep_wo_float32=keep)
        for name, batch in batches.items():
            errors = compare_outputs(model.outputs(batch), outputs[name], batch, checkpoint.architecture.pad_token_id)
            own[name] = _smaller(errors.own(), own.get(name), ceiling(narrow))
            on_batch()
    return Reference(exact, outputs, own)


def passes(narrow: str | None) -> int:
    """How often ``measure_reference`` runs each batch."""
    return 1 if narrow is None else 3


def _smaller(found: OwnErrors, known: OwnErrors | None, most: float) -> OwnErrors:
    """Field by field the smaller error, none above ``most``; the KL divergence goes with its square."""
    values = {}
    for entry in fields(OwnErrors):
        bounds = [getattr(errors, entry.name) for errors in (found, known) if errors is not None]
        values[entry.name] = min(*bounds, most**2 if entry.name == "kl" else most)
    return OwnErrors(**values)
