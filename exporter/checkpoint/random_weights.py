"""Weights drawn from a seed: a model of the right structure and sane activations, and nothing learnt."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.checkpoint.stores import StoredTensor

if TYPE_CHECKING:
    import torch

LOGIT_STD = 3.0
"""Standard deviation of the logits of a random model with its own output layer."""


class RandomStore:
    """Each tensor depends on (seed, name, shape) only, not on the order of reading.

    Scales follow Mesh TensorFlow's T5 initialisation (transformers' ``_init_weights``), so that activations
    stay in a trained model's range. Norm weights and position biases vary enough that leaving one out shows
    in the logits.
    """

    def __init__(self, architecture: Architecture, seed: int) -> None:
        self._architecture = architecture
        self._seed = seed
        self.tensors = {name: StoredTensor(shape, "float32") for name, shape in architecture.tensor_shapes().items()}

    def read(self, name: str) -> torch.Tensor:
        """``[out, in]`` float32."""
        import torch

        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        mean, std = self._distribution(name)
        return torch.empty(self.tensors[name].shape).normal_(mean, std, generator=generator)

    def same_values(self, first: str, second: str) -> bool:
        """Different names draw different values."""
        return first == second

    def fingerprint(self) -> Any:
        return ["random", self._seed]

    def _distribution(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of the tensor called ``name``."""
        facts = self._architecture
        if name.endswith("layer_norm.weight"):
            return 1.0, 0.1
        stds = {
            "q": (facts.d_model * facts.d_kv) ** -0.5,  # T5: the scores are not scaled, so the queries are small
            "k": facts.d_model**-0.5,
            "v": facts.d_model**-0.5,
            "o": facts.inner_dim**-0.5,
            "wi": facts.d_model**-0.5,
            "wi_0": facts.d_model**-0.5,
            "wi_1": facts.d_model**-0.5,
            "wo": facts.d_ff**-0.5,
            "relative_attention_bias": 1.0,
            "shared": 1.0,
            "lm_head": LOGIT_STD * facts.d_model**-0.5 / facts.logit_scale,
        }
        return 0.0, stds[name.removesuffix(".weight").rpartition(".")[2]]
