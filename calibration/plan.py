"""The plan of a quantized bundle: what is rounded, how, what it costs, and why; made from texts, put into the graphs.

texts -> inputs of the sites -> scales and smoothing -> each site alone -> gate and fallback -> graphs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from t5edge.calibration.activations import quantize_activations
from t5edge.calibration.cache import CalibrationKey, load_choices, save_choices
from t5edge.calibration.collect import Sample, collect_inputs
from t5edge.calibration.observers import DEFAULT, OBSERVERS
from t5edge.calibration.placement import Gate, measure_alone, place
from t5edge.calibration.points import QuantizationPoint, find_points
from t5edge.calibration.quantize import quantize_weights
from t5edge.calibration.smoothing import Choice, apply_smoothing, can_smooth, choose
from t5edge.calibration.variants import Divergence, Rounding
from t5edge.errors import UserError
from t5edge.exporter.graph.weight_expressions import Factors, evaluate
from t5edge.kernels.weights import Source, Stack

if TYPE_CHECKING:
    import torch

    from t5edge.bundle.precision import Precision
    from t5edge.calibration.texts import CalibrationTexts
    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.graph.assemble import Graphs
    from t5edge.progress import Progress

SHARED_SAMPLES = 3
"""Decoder layers whose matrices judge the smoothing of the cross keys and values, which all layers share."""
JUDGED_COLUMNS = 8192
"""Of a matrix with more columns (lm_head) about so many judge its smoothing."""


@dataclass(frozen=True)
class Settings:
    """How a plan is made. ``smooth``: search SmoothQuant factors; ``gate``: let sensitive sites fall back."""

    observer: str = DEFAULT
    smooth: bool = True
    gate: bool = True


@dataclass(frozen=True)
class Plan:
    """What each site becomes. ``kept`` are names of sites that stay in the compute dtype."""

    row: Precision
    sites: tuple[QuantizationPoint, ...]
    choices: Mapping[str, Choice]
    alone: Mapping[str, Divergence]
    kept: frozenset[str]
    gate: Gate | None
    calibration_key: CalibrationKey
    origin: str

    @property
    def keys_kept(self) -> frozenset[str]:
        return frozenset(site.key for site in self.sites if site.name in self.kept)

    @property
    def scales(self) -> dict[str, float]:
        """Input scales in the graph of the sites with quantized activations, by the key of their weight."""
        chosen = [
            (site, self.choices[site.name].scale)
            for site in self.sites
            if site.name in self.choices and site.name not in self.kept
        ]
        return {site.key: scale * site.shrink for site, scale in chosen if scale is not None}

    @property
    def factors(self) -> dict[str, Factors]:
        """Smoothing factors by site name."""
        found = {name: choice.factors for name, choice in self.choices.items() if name not in self.kept}
        return {name: factors for name, factors in found.items() if factors is not None}

    def extra_bytes(self, site: QuantizationPoint) -> int:
        """What keeping ``site`` in the compute dtype costs over quantizing it; scales left out."""
        scheme = site.scheme(self.row)
        full = 4 if self.row.compute == "float" else 2
        return int(site.parameters * (full - scheme.bits / 8)) if site.name in self.kept and scheme else 0

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "recipe": self.calibration_key.to_dict(),
            "texts": self.origin,
            "gate": None if self.gate is None else self.gate.to_dict(),
            "kept": sorted(self.kept),
            "kept_bytes": sum(map(self.extra_bytes, self.sites)),
            "sites": [self._site(site) for site in self.sites],
        }

    def _site(self, site: QuantizationPoint) -> dict[str, Any]:
        choice, alone, scheme = self.choices.get(site.name), self.alone.get(site.name), site.scheme(self.row)
        kept = site.name in self.kept or scheme is None
        facts: dict[str, Any] = {"name": site.name, "graph": site.graph, "shape": list(site.shape), "kept": kept}
        if scheme is not None:
            facts |= {"bits": scheme.bits, "block": scheme.block}
        if alone is not None:
            facts |= {"kl": alone.kl, "top1": alone.top1}
        if choice is not None:
            facts |= {key: value for key, value in asdict(choice).items() if key != "factors"}
            if choice.scale is not None:
                facts["range"] = choice.scale * 127
        return facts


def make_plan(
    checkpoint: Checkpoint,
    graphs: Graphs,
    row: Precision,
    texts: CalibrationTexts,
    progress: Progress,
    settings: Settings | None = None,
) -> Plan:
    """Measure everything that ``row`` needs to know on ``texts``.

    Raises:
        UserError: an activation is NaN or infinite, or the observer is unknown.
    """
    settings = settings or Settings()
    if settings.observer not in OBSERVERS:
        raise UserError(f"observer '{settings.observer}' is unknown; choose one of {', '.join(OBSERVERS)}.")
    sites = find_points(graphs)
    calibration_key = CalibrationKey.of(checkpoint, sites, row, texts, asdict(settings))
    cached = load_choices(calibration_key)
    choices = cached if cached is not None else choose_scales(checkpoint, sites, row, texts, progress, settings)
    if cached is None:
        save_choices(calibration_key, choices)
    roundings = plan_roundings(sites, row, choices)
    with progress.stage("sensitivity", None, "layers") as stage:
        alone = measure_alone(checkpoint, texts, sites, roundings, stage.advance)
    kept, gate = frozenset[str](), None
    if settings.gate:
        with progress.stage("quantization gate", None, "layers") as stage:
            kept, gate = place(checkpoint, texts, row, sites, roundings, alone, stage.advance)
    return Plan(row, sites, choices, alone, kept, gate, calibration_key, texts.origin)


def choose_scales(
    checkpoint: Checkpoint,
    sites: Sequence[QuantizationPoint],
    row: Precision,
    texts: CalibrationTexts,
    progress: Progress,
    settings: Settings,
) -> dict[str, Choice]:
    """Smoothing of each site that takes it, and the scale of each input that ``row`` quantizes, by site name."""
    rounded = {site.name for site in sites if site.graph in row.activations and site.block}
    wanted = [site for site in sites if site.name in rounded or (settings.smooth and can_smooth(site))]
    if not wanted:
        return {}
    choices: dict[str, Choice] = {}
    shared = [site for site in wanted if site.role == "cross_kv"]

    def choose_one(site: QuantizationPoint, sample: Sample) -> None:
        if site.name in choices:
            return
        group = shared if site in shared else [site]
        judged = group[:: max(1, (len(group) - 1) // (SHARED_SAMPLES - 1) or 1)]
        weights = [_weight(checkpoint, member)[:, :: judged_step(member)] for member in judged]
        scheme = site.scheme(row)
        smooth = settings.smooth and can_smooth(site)
        if scheme is not None:
            observer = OBSERVERS[settings.observer] if site.name in rounded else None
            found = choose(sample, weights, scheme, observer, smooth)
            choices.update(dict.fromkeys((member.name for member in group), found))

    a = checkpoint.architecture
    layers = a.encoder_layers + (a.decoder_layers if any(site.graph == "decoder" for site in wanted) else 0)
    with progress.stage("activation ranges", layers, "layers") as stage:
        collect_inputs(checkpoint, texts.batches, wanted, choose_one, stage.advance)
    return choices


def judged_step(site: QuantizationPoint) -> int:
    """Every so many columns of a site's matrix judge its smoothing."""
    return max(1, site.shape[1] // JUDGED_COLUMNS)


def _weight(checkpoint: Checkpoint, site: QuantizationPoint) -> torch.Tensor:
    """The site's matrix [in, out], float32."""
    sources = tuple(map(Source, site.sources))
    rows = site.shape[1] // len(sources)
    return evaluate(Stack(sources, (rows,) * len(sources), site.shape[0], transposed=True), checkpoint.read).float()


def plan_roundings(
    sites: Sequence[QuantizationPoint], row: Precision, choices: Mapping[str, Choice]
) -> dict[str, Rounding]:
    """How each site that ``row`` can quantize is rounded."""
    found = {}
    for site in sites:
        scheme, choice = site.scheme(row), choices.get(site.name)
        if scheme is not None:
            found[site.name] = Rounding(scheme, *((choice.scale, choice.factors) if choice else ()))
    return found


def apply_plan(plan: Plan, graphs: Graphs) -> None:
    """Put the plan into every graph: smoothed weight expressions, quantized weights, quantized inputs."""
    for model in dict(graphs.items()).values():
        apply_smoothing(model, plan.factors)
        quantize_weights(model, plan.row, plan.keys_kept)
        quantize_activations(model, plan.scales)
