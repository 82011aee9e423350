"""What a reference is: a checkpoint in PyTorch that answers batches, teacher-forced, whether it is in memory or not."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from t5edge.bundle.architecture import Architecture
    from t5edge.exporter.checkpoint.sentence import SentenceModules
    from t5edge.exporter.reference.texts import Batch


class Weights(Protocol):
    """A model's facts and tensors: a ``Checkpoint``, or what stands in for one."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def generation_config(self) -> dict[str, Any]: ...

    @property
    def sentence(self) -> SentenceModules | None: ...

    def names(self) -> list[str]: ...

    def read(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch, float32. Of an encoder alone ``cross`` is empty, and ``logits`` is [batch, 0, 0].

    ``hidden`` [batch, source, d_model]; ``logits`` [batch, target, vocab]; ``cross`` by port name
    (``present.{i}.encoder.key``) [batch, heads, source, d_kv]; ``embedding`` [batch, size] of a sentence encoder;
    ``labels`` of a head: see ``heads.head_logits``.
    """

    hidden: np.ndarray
    cross: Mapping[str, np.ndarray]
    logits: np.ndarray
    embedding: np.ndarray | None = None
    labels: np.ndarray | None = None


class Reference(Protocol):
    """A checkpoint in PyTorch at one dtype, on the CPU: ``WholeReference`` or ``StreamedReference``."""

    def outputs(self, batches: Mapping[str, Batch], cross: Container[str] = ()) -> Iterator[tuple[str, Outputs]]:
        """Each batch's outputs by its name; ``cross`` keys and values of the batches named there only."""
        ...


MakeReference = Callable[..., Reference]
"""Of ``checkpoint, dtype``; ``keep_wo_float32``: FFN output projections stay float32, as in transformers' float16."""
