"""Parts of the manifest, each filled by one stage: adapters, prompts, vocabulary, pooling, rescale, layout, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from t5edge.bundle.schema import Count, Size


@dataclass(frozen=True)
class StackRescale:
    """Powers of two that keep one stack in float16's range.

    Attributes:
        k: exponent of the residual stream's divisor.
        t: exponents of the feed-forward divisors, by layer; empty where there are none.
        largest_residual, largest_ffn: largest activations seen in float32, before the rescale.
        headroom: float16's largest number over the largest residual, after the rescale.
    """

    k: int = 0
    t: tuple[int, ...] = ()
    largest_residual: float | None = None
    largest_ffn: tuple[float, ...] = ()
    headroom: float | None = None


@dataclass(frozen=True)
class RescaleFacts:
    """Both stacks."""

    encoder: StackRescale = field(default_factory=StackRescale)
    decoder: StackRescale = field(default_factory=StackRescale)


@dataclass(frozen=True)
class LayoutParity:
    """Another layout's graphs against ours: the largest relative error of the logits, by form, and its limit."""

    errors: Mapping[str, float]
    limit: float
    passed: bool


@dataclass(frozen=True)
class Layout:
    """Another layout that the bundle holds beside ours; ``parity`` is None where it was not verified."""

    name: str
    parity: LayoutParity | None = None

    def problem(self) -> str | None:
        """Why the bundle must not be used in this layout; None where it may."""
        if self.parity is None or self.parity.passed:
            return None
        errors = ", ".join(f"{form}: {error:.2g}" for form, error in self.parity.errors.items())
        limit = f"{self.parity.limit:.2g}"
        return f"the graphs of layout {self.name} do not give our logits (relative error {errors}, limit {limit})."


NOTICEABLE = 0.95
"""A part is called slower below this ratio: above, runs differ by as much."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of one encoder run and of one decoder step, where there is a decoder."""

    encoder_ms: float
    step_ms: float | None = None

    @property
    def parts(self) -> dict[str, float]:
        """Milliseconds of each part by the name that a reader knows it by."""
        known = {"encoder": self.encoder_ms, "decoder step": self.step_ms}
        return {name: time for name, time in known.items() if time is not None}


@dataclass(frozen=True)
class Speed:
    """A quantized bundle against float32 on the exporting machine's CPU.

    One text: ``source_tokens`` are encoded, then ``steps`` are taken, none without a decoder. Speedups are times of
    float32 over the bundle's.
    """

    source_tokens: Size
    steps: Count
    threads: Count | None
    quantized: Times
    fp32: Times
    encoder_speedup: float
    step_speedup: float | None
    speedup: float

    @property
    def parts(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of the bundle and of float32, by part."""
        exact = self.fp32.parts
        return {name: (own, exact[name]) for name, own in self.quantized.parts.items() if name in exact}

    @property
    def slower_parts(self) -> list[str]:
        """The parts that are slower than float32's by more than runs differ."""
        return [name for name, (own, exact) in self.parts.items() if exact / own < NOTICEABLE]


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter that was merged into the checkpoint.

    Attributes:
        source, revision: the folder or hub id, as it was named, and the commit on the hub.
        kind: LORA, DORA, LOHA, LOKR or IA3.
        sha256: of the file of its weights.
        scales: what the learnt products were multiplied by; several where ranks or alphas differ by module.
        modules: how many weights it changes.
        replaced: weights that it replaces whole (``modules_to_save``), by module.
    """

    source: str
    revision: str | None
    kind: str
    sha256: str
    scales: tuple[float, ...]
    modules: Count
    replaced: tuple[str, ...] = ()

    @property
    def spelled(self) -> str:
        """As ``--adapter`` takes it."""
        return f"{self.source}@{self.revision}" if self.revision else self.source


PREFIX_TUNING = "PREFIX_TUNING"
NO_PROMPT = "none"
"""What callers name where a source shall have no prompt."""


@dataclass(frozen=True)
class PromptFacts:
    """A learnt prompt: ids that stand in front of a source.

    Attributes:
        name: what callers call it.
        source, revision: the folder or hub id, as it was named, and the commit on the hub.
        kind: PROMPT_TUNING, P_TUNING or PREFIX_TUNING.
        sha256: of the file of its weights.
        tokens: virtual tokens: of the encoder, or, of a prefix, of the decoder.
        first_id: of its ids, which follow each other. A prefix has one, below 0, which is masked.
    """

    name: str
    source: str
    revision: str | None
    kind: str
    sha256: str
    tokens: Size
    first_id: int

    @property
    def ids(self) -> tuple[int, ...]:
        """What stands in front of a source."""
        return (self.first_id,) if self.first_id < 0 else tuple(range(self.first_id, self.first_id + self.tokens))

    def moved(self, by: int) -> PromptFacts:
        """With ids behind a vocabulary of another size."""
        return self if self.first_id < 0 else replace(self, first_id=self.first_id + by)

    @property
    def spelled(self) -> str:
        """As ``--prompt`` takes it."""
        return f"{self.name}={self.source}@{self.revision}" if self.revision else f"{self.name}={self.source}"


@dataclass(frozen=True)
class VocabularyFacts:
    """Which rows of the vocabulary were kept.

    Attributes:
        corpus, sha256: the name of the file of texts, and its hash; None where languages alone decided.
        floor: occurrences that a piece needed.
        rows_before, rows: of the embedding and of the output layer.
        parameters_before, parameters: of the whole model.
        held_out_texts: every tenth text, tokenized with pieces counted in the others only; 0 where there were too few.
        held_out_same: how many of them give the ids that the whole vocabulary gives.
        languages: the tags that ``--languages`` named.
        scripts: what they are written in, as codes of ISO 15924; with a corpus they add single characters only.
    """

    corpus: str | None
    sha256: str | None
    floor: Size
    rows_before: Size
    rows: Size
    parameters_before: Size
    parameters: Size
    held_out_texts: Count
    held_out_same: Count
    languages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()


SENTENCE = "sentence."
"""What the names of weights behind the pooling of a sentence encoder begin with."""
ACTIVATIONS = ("Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
"""Behind dense layers, by the names of torch's classes, with their default settings."""


@dataclass(frozen=True)
class SentenceStep:
    """A module behind the pooling: ``dense`` or ``normalize`` (to length 1).

    Attributes:
        size: of its output.
        weights: what the names of a dense layer's weights begin with; ``bias``: whether it has one.
        activation: behind a dense layer, by the name of torch's class; None for none.
    """

    kind: Literal["dense", "normalize"]
    size: Size
    weights: str = ""
    bias: bool = False
    activation: str | None = None


@dataclass(frozen=True)
class SentenceFacts:
    """What makes one vector of a text's hidden states, as sentence-transformers does.

    Attributes:
        pooling: how; several are joined in this order.
        steps: what follows, in order.
        dimension: of the embedding.
        max_length: tokens of a text, the end token included; longer ones are cut. None for no limit.
        lower_case: whether texts are lower-cased first.
        prompts: texts that are put before every text, by their names; ``default_prompt`` is the name of the usual one.
        include_prompt: whether a prompt's tokens are pooled; where not, ``attention_mask`` is 2 at them.
    """

    pooling: Sequence[str]
    steps: Sequence[SentenceStep]
    dimension: Size
    max_length: Size | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
