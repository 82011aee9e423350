"""Many ways of quantizing one model, run side by side: each is a group of rows in one batch, each layer loaded once.

    rows : [reference | variant 1 | variant 2 | ...] x texts, a window of them at a time through each layer

A variant is the set of points that are rounded. Until its first point it computes what the reference does, so it joins
the batch there. Rounding happens at the modules of transformers' blocks: x to its scale, W to its integers, as in the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from t5edge.calibration.observers import round_values
from t5edge.calibration.points import EMBEDDING, OUTPUT, QuantizationPoint
from t5edge.calibration.quantize import TABLE
from t5edge.calibration.scheme import Scheme, round_columns
from t5edge.exporter.graph.weight_expressions import Factors
from t5edge.exporter.reference.prompts import PaddedPrefixes
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.exporter.reference.texts import target_mask

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch

MAX_BYTES = 150e6
"""Rough bound on the widest activation of the variants that run through a layer together."""
HIDDEN_BYTES = 1.2e9
"""Bound on the hidden states of all variants of a pass, the encoder's beside the decoder's; more take another pass.

Every point of the widest and deepest published shape (UL2) goes into one.
"""


@dataclass(frozen=True)
class Rounding:
    """How a point is rounded: its weight's scheme; its input's scale (None: only the weight) and smoothing factors."""

    scheme: Scheme
    scale: float | None = None
    factors: Factors | None = None


@dataclass(frozen=True)
class Divergence:
    """A variant against the reference over all positions: mean KL (nats), largest KL, share of equal best tokens.

    Another best token counts as equal when the reference itself puts it within ``tie`` nats of its own best.
    """

    kl: float
    largest_kl: float
    top1: float
    positions: int

    @property
    def rank(self) -> float:
        """What points are ordered by."""
        return self.kl


@dataclass(frozen=True)
class HiddenDivergence:
    """A variant of an encoder alone, which has no distributions: over all tokens of the texts.

    ``hidden``: relative error of the hidden states. ``token``: the largest distance of a token's hidden state from the
    reference's, both scaled to length 1.
    """

    hidden: float
    token: float
    positions: int

    @property
    def rank(self) -> float:
        """What points are ordered by."""
        return self.hidden


Found = Divergence | HiddenDivergence


def measure_variants(
    checkpoint: Checkpoint,
    batch: Batch,
    points: Sequence[QuantizationPoint],
    roundings: Mapping[str, Rounding],
    variants: Sequence[frozenset[str]],
    tie: float = 0.0,
    on_layer: Callable[[], None] | None = None,
) -> list[Found]:
    """Teacher-forced next-token distributions of each variant (a set of point names) against float32.

    Of an encoder alone its hidden states.
    """
    size = max(1, variants_of_a_pass(checkpoint, batch))
    ranked = sorted(range(len(variants)), key=lambda index: first_place(checkpoint, variants[index]))
    found: dict[int, Found] = {}
    for start in range(0, len(ranked), size):
        part = ranked[start : start + size]
        run = _Run(checkpoint, batch, points, roundings, [variants[index] for index in part], tie, on_layer)
        found |= zip(part, run.divergences(), strict=True)
    return [found[index] for index in range(len(variants))]


def variants_of_a_pass(checkpoint: Checkpoint, batch: Batch) -> int:
    """How many variants one pass over the checkpoint takes, so that hidden states keep below ``HIDDEN_BYTES``."""
    tokens = batch.input_ids.size + batch.decoder_input_ids.size
    return int(HIDDEN_BYTES // (4 * tokens * checkpoint.architecture.d_model)) - 1


def variants_at_once(checkpoint: Checkpoint, batch: Batch) -> int:
    """How many variants run through a layer together, so that the widest activation keeps below ``MAX_BYTES``."""
    a = checkpoint.architecture
    widest = batch.input_ids.size * 4 * (a.d_ff * (2 if a.gated else 1) + 3 * a.inner_dim)
    return int(MAX_BYTES // widest)


def first_place(checkpoint: Checkpoint, variant: frozenset[str]) -> int:
    """The layer where a variant leaves the reference: -1 the embedding, encoder, decoder, then the output layer."""
    a = checkpoint.architecture
    places = {EMBEDDING: -1, OUTPUT: a.encoder_layers + a.decoder_layers}
    found = [places[OUTPUT]]
    for name in variant:
        if name in places:
            found.append(places[name])
        else:
            stack, _, layer, _ = name.split(".")
            found.append(int(layer) + (a.encoder_layers if stack == "decoder" else 0))
    return min(found)


class _Run:
    """One pass. ``active`` rows of variants stand behind the reference's rows."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        batch: Batch,
        points: Sequence[QuantizationPoint],
        roundings: Mapping[str, Rounding],
        variants: Sequence[frozenset[str]],
        tie: float,
        on_layer: Callable[[], None] | None,
    ) -> None:
        self.checkpoint, self.batch, self.roundings, self.variants = checkpoint, batch, roundings, variants
        self.points = {point.name: point for point in points}
        self.texts = len(batch.input_ids)
        self.tie, self.on_layer = tie, on_layer
        self.first = [first_place(checkpoint, variant) for variant in variants]
        self.window = slice(0, 0)

    def divergences(self) -> Sequence[Found]:
        """Both stacks, then the output layer variant by variant."""
        encoded = self._stack("encoder", self.batch.input_ids, None)
        if self.checkpoint.architecture.encoder_alone:
            return self._compare_hidden(self._grown(encoded, max(self.first)))
        decoded = self._stack("decoder", self.batch.decoder_input_ids, encoded)
        return self._compare(self._grown(decoded, max(self.first)))

    def _stack(self, stack: Any, ids: Any, encoded: torch.Tensor | None) -> torch.Tensor:
        """Normed hidden states [rows, length, d_model] of the reference and of the variants that have begun."""
        import torch

        reference = StreamedReference(self.checkpoint, torch.float32)
        hidden = self._embedded(reference, ids, encoded)
        padding = reference.padding(self.batch.attention_mask)
        prefixes = PaddedPrefixes(self.checkpoint, self.batch.input_ids)
        offset, length = 0, ids.shape[1]
        if encoded is not None:
            offset, length = self.checkpoint.architecture.encoder_layers, length + prefixes.length
        for layer, block, bias in reference.blocks(stack):
            biases = bias(length)
            hidden = self._grown(hidden, offset + layer)
            self._hook(f"{stack}.block.{layer}", block, len(hidden) // self.texts - 1)
            if encoded is not None:
                encoded, biases = self._grown(encoded, offset + layer), prefixes.hide(biases + reference.causal(length))
            cache = partial(prefixes.cache, layer, torch.float32)
            self._run(partial(reference.run_block, block), hidden, biases, encoded, padding, cache)
            if self.on_layer is not None:
                self.on_layer()
        return reference.norm(stack, hidden)

    def _run(
        self,
        run: Any,
        hidden: torch.Tensor,
        bias: torch.Tensor,
        encoded: torch.Tensor | None,
        padding: torch.Tensor,
        cache: Callable[[int], tuple[Any, ...]],
    ) -> None:
        """``hidden`` [rows, length, d_model] through one block, in place, a window of variants at a time.

        ``bias`` [1 or texts, heads, length, keys]; ``cache`` gives a decoder's, for so many variants.
        """
        size = self.texts * max(1, variants_at_once(self.checkpoint, self.batch))
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            copies = (rows.stop - start) // self.texts
            mask = padding.repeat(copies, 1, 1, 1)
            self.window = rows
            if encoded is None:
                hidden[rows] = run(hidden[rows], bias + mask)
            else:
                own = bias.repeat(copies, 1, 1, 1) if len(bias) > 1 else bias
                hidden[rows] = run(hidden[rows], own, encoded[rows], mask, *cache(copies))

    def _embedded(self, reference: StreamedReference, ids: Any, encoded: torch.Tensor | None) -> torch.Tensor:
        """Embeddings [rows, length, d_model]; variants that round the table have begun before the first layer."""
        import torch

        exact = reference.embed(ids)
        rounded = exact
        if EMBEDDING in self.roundings:
            scale = exact.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
            rounded = (exact / scale).round() * scale
        begun = sum(first < 0 for first in self.first)
        if encoded is not None:
            begun = len(encoded) // self.texts - 1
        return torch.cat([exact, *(rounded if EMBEDDING in v else exact for v in self.variants[:begun])])

    def _grown(self, hidden: torch.Tensor, place: int) -> torch.Tensor:
        """``hidden`` with the reference's rows copied for the variants that begin at ``place`` or before."""
        import torch

        wanted = sum(first <= place for first in self.first)
        missing = wanted - (len(hidden) // self.texts - 1)
        return torch.cat([hidden, *[hidden[: self.texts]] * missing]) if missing > 0 else hidden

    def _hook(self, block_name: str, block: Any, active: int) -> None:
        import torch

        for point in self.points.values():
            holders = [v for v in range(active) if point.name in self.variants[v]] if point.block == block_name else []
            if holders:
                rows = torch.cat([torch.arange(self.texts) + self.texts * (v + 1) for v in holders])
                for name in point.modules:
                    module = block.get_submodule(name)
                    module.register_forward_hook(
                        _rounded_linear(module, self.roundings[point.name], rows, lambda: self.window)
                    )

    def _compare_hidden(self, encoded: torch.Tensor) -> list[HiddenDivergence]:
        """Hidden states [rows, source, d_model] of each variant against the reference's; padding left out."""
        import torch

        seen = torch.from_numpy(self.batch.attention_mask.astype(bool))
        exact, *found = (states[seen] for states in encoded.unflatten(0, (-1, self.texts)))
        return [_hidden_divergence(exact, states) for states in found]

    def _compare(self, decoded: torch.Tensor) -> list[Divergence]:
        """Logits of the reference once, then of each variant; padding left out."""
        import torch

        mask = torch.from_numpy(target_mask(self.batch.decoder_input_ids, self.checkpoint.architecture.pad_token_id))
        a = self.checkpoint.architecture
        table = self.checkpoint.read(TABLE if a.tied else "lm_head.weight").float().T
        if a.logit_scale != 1.0:
            table = table * a.logit_scale
        exact = torch.log_softmax(decoded[: self.texts][mask] @ table, dim=-1)
        rounded = None
        found = []
        for index, variant in enumerate(self.variants):
            if OUTPUT in variant and rounded is None:
                rounded = _rounded_weight(table, self.roundings[OUTPUT])
            start = self.texts * (index + 1)
            states = decoded[start : start + self.texts][mask]
            logits = states @ (rounded if OUTPUT in variant and rounded is not None else table)
            found.append(_divergence(exact, logits, self.tie))
        return found


def _divergence(exact: torch.Tensor, logits: torch.Tensor, tie: float) -> Divergence:
    """Log-probabilities [positions, vocab] of the reference against logits."""
    import torch

    found = torch.log_softmax(logits, dim=-1)
    kl = (exact.exp() * (exact - found)).sum(dim=-1).double().clamp(min=0)
    chosen = exact.gather(1, found.argmax(dim=-1, keepdim=True)).squeeze(1)
    top1 = (exact.amax(dim=-1) - chosen <= tie).double().mean()
    return Divergence(float(kl.mean()), float(kl.max()), float(top1), len(kl))


def _hidden_divergence(exact: torch.Tensor, found: torch.Tensor) -> HiddenDivergence:
    """Hidden states [tokens, d_model] of the reference against others."""
    from torch.nn.functional import normalize

    error = (found - exact).norm() / exact.norm()
    token = (normalize(found, dim=-1) - normalize(exact, dim=-1)).norm(dim=-1).max()
    return HiddenDivergence(float(error), float(token), len(exact))


def _rounded_weight(weight: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """A matrix [in, out] as x meets it where only the weight is rounded, smoothing undone."""
    if rounding.factors is None:
        return round_columns(weight, rounding.scheme)
    s = rounding.factors.values()[:, None]
    return round_columns(weight * s, rounding.scheme) / s


def _rounded_linear(
    module: Any, rounding: Rounding, rows: torch.Tensor, window: Callable[[], slice]
) -> Callable[..., torch.Tensor]:
    """A forward hook that computes ``rows``, of those in ``window``, again with rounded input and weight."""
    import torch

    s = torch.ones(module.in_features) if rounding.factors is None else rounding.factors.values()
    weight = round_columns(module.weight.detach().T.float() * s[:, None], rounding.scheme)

    def hook(_: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        place = window()
        here = rows[(rows >= place.start) & (rows < place.stop)] - place.start
        if not len(here):
            return out
        x = args[0][here] / s
        if rounding.scale is not None:
            x = round_values(x, rounding.scale)
        out[here] = x @ weight
        return out

    return hook
