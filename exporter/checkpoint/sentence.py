"""The modules of sentence-transformers behind a checkpoint's encoder: facts and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from t5edge.bundle.records import SentenceFacts

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.stores import StoredTensor, Tensors


@dataclass(frozen=True)
class SentenceModules:
    """The modules of a model: facts, and the weights of its dense layers under names that begin with ``sentence.``."""

    facts: SentenceFacts
    stores: Mapping[str, Tensors] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The weights by their names."""
        return {
            prefix + name: tensor for prefix, store in self.stores.items() for name, tensor in store.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """A weight, [out, in] or [out]."""
        prefix = next(prefix for prefix in self.stores if name.startswith(prefix))
        return self.stores[prefix].read(name.removeprefix(prefix))

    def fingerprint(self) -> list[Any]:
        """Changes when a weight may have changed."""
        return [store.fingerprint() for store in self.stores.values()]
