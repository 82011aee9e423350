"""What the graphs of a T5-family model depend on, read from the raw ``config.json`` and the tensor names."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from t5edge.bundle.schema import Count, OneOf, Size

Stack = Literal["encoder", "decoder"]
HEADS: dict[str, tuple[str, ...]] = {
    "tokens": ("classifier.weight", "classifier.bias"),
    "span": ("qa_outputs.weight", "qa_outputs.bias"),
    "text": (
        "classification_head.dense.weight",
        "classification_head.dense.bias",
        "classification_head.out_proj.weight",
        "classification_head.out_proj.bias",
    ),
}
"""The tensors of each head, as transformers names them."""
FURTHER = ("virtual_tokens", "prefix_lengths", "head", "labels", "head_layers")
"""Facts that most models have none of, and their manifests do not say."""
VIRTUAL_TOKENS = "virtual_tokens.weight"
"""The embeddings of learnt prompts among a checkpoint's tensors."""


def prefix_name(layer: int, half: str) -> str:
    """What a decoder layer's learnt keys or values are called: ``half`` is "key" or "value"."""
    return f"prefix.{layer}.{half}"


@dataclass(frozen=True)
class Architecture:
    """The facts of one model. ``d_kv`` is never derived from ``d_model / num_heads``.

    Without decoder layers it is an encoder alone: nothing but the embedding and the encoder's stack.
    """

    vocab_size: Size
    d_model: Size
    d_kv: Size
    d_ff: Size
    num_heads: Size
    encoder_layers: Size
    decoder_layers: Count
    activation: str
    gated: bool
    tied: bool
    scale_logits: bool
    per_layer_bias: bool = False
    num_buckets: Size = 32
    max_distance: Size = 128
    norm_epsilon: float = 1e-6
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    virtual_tokens: Count = 0
    """Embeddings of learnt prompts: the ids behind the vocabulary's, for sources only."""
    prefix_lengths: tuple[Size, ...] = ()
    """Of learnt prefixes: positions that each puts before a decoder's own."""

    head: Annotated[str, OneOf(("", *HEADS))] = ""
    """What stands on an encoder alone: "tokens" classifies each, "span" finds start and end, "text" classifies all."""
    labels: Count = 0
    """Logits of the head."""
    head_layers: Count = 0
    """Decoder layers below the head, which run once over the source: those of "span" and "text"."""

    @property
    def source_ids(self) -> int:
        """Ids that a source may have: the vocabulary's, then those of virtual tokens."""
        return self.vocab_size + self.virtual_tokens

    @property
    def prefix_length(self) -> int:
        """Of the longest prefix; 0 where there is none."""
        return max(self.prefix_lengths, default=0)

    @property
    def inner_dim(self) -> int:
        """Width of one attention projection, ``num_heads * d_kv``; often not ``d_model``."""
        return self.num_heads * self.d_kv

    @property
    def ffn(self) -> str:
        """``relu``, ``gated-gelu_tanh``, ``gated-silu``, ... for tables."""
        return f"gated-{self.activation}" if self.gated else self.activation

    @property
    def logit_scale(self) -> float:
        """T5: tied embeddings double as the output layer and are scaled by ``d_model ** -0.5``."""
        return float(self.d_model**-0.5) if self.scale_logits else 1.0

    @property
    def encoder_alone(self) -> bool:
        """Whether there is no decoder, and so no output layer."""
        return self.decoder_layers == 0

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks that it has, in the order they run."""
        return ("encoder",) if self.encoder_alone else ("encoder", "decoder")

    def without_decoder(self) -> Architecture:
        """The encoder alone; of the output layer nothing is left to state."""
        return replace(self, decoder_layers=0, tied=True, scale_logits=True)

    def layers(self, stack: Stack) -> int:
        return self.encoder_layers if stack == "encoder" else self.decoder_layers

    def to_dict(self) -> dict[str, Any]:
        facts = asdict(self)
        return {name: value for name, value in facts.items() if value or name not in FURTHER}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor a checkpoint must hold, under transformers' names, with its shape ``[out, in]``."""
        shapes: dict[str, tuple[int, ...]] = {"shared.weight": (self.vocab_size, self.d_model)}
        for stack in self.stacks:
            for layer in range(self.layers(stack)):
                for name, shape in self.block_shapes(stack, layer).items():
                    shapes[f"{stack}.block.{layer}.{name}"] = shape
            shapes[f"{stack}.final_layer_norm.weight"] = (self.d_model,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.d_model)
        return {**shapes, **self.further_shapes()}

    def further_shapes(self) -> dict[str, tuple[int, ...]]:
        """What is no part of the stacks: tables of learnt prompts, a head."""
        return {**self.prompt_shapes(), **self.head_shapes()}

    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of the head, those of the decoder below it first."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.head_layers):
            for name, shape in self.block_shapes("decoder", layer).items():
                shapes[f"decoder.block.{layer}.{name}"] = shape
        if self.head_layers:
            shapes["decoder.final_layer_norm.weight"] = (self.d_model,)
        for name in HEADS.get(self.head, ()):
            rows = self.d_model if ".dense." in name else self.labels
            shapes[name] = (rows,) if name.endswith("bias") else (rows, self.d_model)
        return shapes

    def with_head_as_decoder(self) -> Architecture:
        """The same model as if the decoder below the head were its own."""
        return replace(self, decoder_layers=self.head_layers, head_layers=0, head="", labels=0)

    def prompt_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tables of learnt prompts: a row for each virtual token; for no prefix, then for each, padded on the left."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.virtual_tokens:
            shapes[VIRTUAL_TOKENS] = (self.virtual_tokens, self.d_model)
        for layer in range(self.decoder_layers if self.prefix_lengths else 0):
            for half in ("key", "value"):
                shapes[prefix_name(layer, half)] = (len(self.prefix_lengths) + 1, self.prefix_length * self.inner_dim)
        return shapes

    def block_shapes(self, stack: Stack, layer: int) -> dict[str, tuple[int, ...]]:
        """Tensors of one block, names relative to ``{stack}.block.{layer}.``."""
        attentions = ["layer.0.SelfAttention"] + (["layer.1.EncDecAttention"] if stack == "decoder" else [])
        shapes: dict[str, tuple[int, ...]] = {}
        for index, attention in enumerate(attentions):
            for projection in ("q", "k", "v"):
                shapes[f"{attention}.{projection}.weight"] = (self.inner_dim, self.d_model)
            shapes[f"{attention}.o.weight"] = (self.d_model, self.inner_dim)
            shapes[f"layer.{index}.layer_norm.weight"] = (self.d_model,)
        if layer == 0 or self.per_layer_bias:
            shapes["layer.0.SelfAttention.relative_attention_bias.weight"] = (
                self.num_buckets,
                self.num_heads,
            )
        feed_forward = f"layer.{len(attentions)}"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            shapes[f"{feed_forward}.DenseReluDense.{name}.weight"] = (self.d_ff, self.d_model)
        shapes[f"{feed_forward}.DenseReluDense.wo.weight"] = (self.d_model, self.d_ff)
        shapes[f"{feed_forward}.layer_norm.weight"] = (self.d_model,)
        return shapes

    @property
    def parameters(self) -> int:
        """Distinct parameters, shared ones counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())
