"""The plan of a quantized bundle: what is rounded, how, what it costs, and why; made from texts, put into the graphs.

texts -> inputs of the quantization points -> scales and smoothing -> sensitivity of each -> gate, exclusion -> graphs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from t5edge.calibration.activations import quantize_activations
from t5edge.calibration.cache import CalibrationKey, load_choices, save_choices
from t5edge.calibration.collect import Sample, collect_inputs
from t5edge.calibration.observers import DEFAULT, OBSERVERS
from t5edge.calibration.placement import Gate, measure_sensitivity, place
from t5edge.calibration.points import EMBEDDING, QuantizationPoint, find_points
from t5edge.calibration.quantize import multiplies_by_table, quantize_weights
from t5edge.calibration.smoothing import Choice, apply_smoothing, can_smooth, choose
from t5edge.calibration.variants import Divergence, Found, Rounding
from t5edge.errors import UserError
from t5edge.exporter.graph.weight_expressions import Factors, evaluate
from t5edge.kernels.weights import Source, StackedWeight

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
    """How a plan is made. ``smooth``: search SmoothQuant factors; ``gate``: let sensitive points be excluded."""

    observer: str = DEFAULT
    smooth: bool = True
    gate: bool = True


@dataclass(frozen=True)
class QuantizationPlan:
    """What each quantization point becomes, by its name. Those ``excluded`` stay in the compute dtype."""

    precision: Precision
    points: tuple[QuantizationPoint, ...]
    choices: Mapping[str, Choice]
    sensitivity: Mapping[str, Found]
    excluded: frozenset[str]
    gate: Gate | None
    calibration_key: CalibrationKey
    origin: str
    text_keys: tuple[str, ...] = ()

    @property
    def excluded_keys(self) -> frozenset[str]:
        return frozenset(point.key for point in self.points if point.name in self.excluded)

    @property
    def scales(self) -> dict[str, float]:
        """Input scales in the graph of the points with quantized activations, by the key of their weight."""
        chosen = [
            (point, self.choices[point.name].scale)
            for point in self.points
            if point.name in self.choices and point.name not in self.excluded
        ]
        return {point.key: scale * point.shrink for point, scale in chosen if scale is not None}

    @property
    def factors(self) -> dict[str, Factors]:
        """Smoothing factors by point name."""
        found = {name: choice.factors for name, choice in self.choices.items() if name not in self.excluded}
        return {name: factors for name, factors in found.items() if factors is not None}

    def extra_bytes(self, point: QuantizationPoint) -> int:
        """What excluding ``point`` costs over quantizing it; scales left out."""
        scheme = point.scheme(self.precision)
        full = 4 if self.precision.compute == "float" else 2
        return int(point.parameters * (full - scheme.bits / 8)) if point.name in self.excluded and scheme else 0

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, under its keys."""
        return {
            "recipe": self.calibration_key.to_dict(),
            "texts": self.origin,
            "text_keys": list(self.text_keys),
            "gate": None if self.gate is None else self.gate.to_dict(),
            "kept": sorted(self.excluded),
            "kept_bytes": sum(map(self.extra_bytes, self.points)),
            **({"sums_fit": True} if self.scales and self.precision.compute == "float" else {}),
            "sites": [self._point_facts(point) for point in self.points],
        }

    def _point_facts(self, point: QuantizationPoint) -> dict[str, Any]:
        choice, scheme = self.choices.get(point.name), point.scheme(self.precision)
        found = self.sensitivity.get(point.name)
        kept = point.name in self.excluded or scheme is None
        facts: dict[str, Any] = {"name": point.name, "graph": point.graph, "shape": list(point.shape), "kept": kept}
        if scheme is not None:
            facts |= {"bits": scheme.bits, "block": scheme.block}
        if found is not None:
            names = ("kl", "top1") if isinstance(found, Divergence) else ("hidden", "token")
            facts |= {name: getattr(found, name) for name in names}
        if choice is not None:
            facts |= {key: value for key, value in asdict(choice).items() if key != "factors"}
            if choice.scale is not None:
                facts["range"] = choice.scale * 127
        return facts


def make_plan(
    checkpoint: Checkpoint,
    graphs: Graphs,
    precision: Precision,
    texts: CalibrationTexts,
    progress: Progress,
    settings: Settings | None = None,
) -> QuantizationPlan:
    """Measure everything that ``precision`` needs to know on ``texts``.

    Raises:
        UserError: an activation is NaN or infinite, or the observer is unknown.
    """
    settings = settings or Settings()
    if settings.observer not in OBSERVERS:
        raise UserError(f"observer '{settings.observer}' is unknown; choose one of {', '.join(OBSERVERS)}.")
    found = find_points(graphs)
    below_head = frozenset(point.name for point in found if is_below_head(checkpoint, point))
    points = [point for point in found if point.name not in below_head]
    calibration_key = CalibrationKey.of(checkpoint, points, precision, texts, asdict(settings))
    cached = load_choices(calibration_key)
    choices = cached if cached is not None else choose_scales(checkpoint, points, precision, texts, progress, settings)
    if cached is None:
        save_choices(calibration_key, choices)
    roundings = plan_roundings(points, precision, choices)
    with progress.stage("sensitivity", None, "layers") as stage:
        sensitivity = measure_sensitivity(checkpoint, texts, points, roundings, stage.advance)
    excluded, gate = frozenset[str](), None
    if settings.gate:
        with progress.stage("quantization gate", None, "layers") as stage:
            excluded, gate = place(checkpoint, texts, precision, points, roundings, sensitivity, stage.advance)
    excluded |= below_head
    return QuantizationPlan(
        precision, found, choices, sensitivity, excluded, gate, calibration_key, texts.origin, texts.keys
    )


def is_below_head(checkpoint: Checkpoint, point: QuantizationPoint) -> bool:
    """Whether a point stays in float because a decoder below a head needs it, which calibration does not run.

    Those are its own, and the token table that both stacks look up.
    """
    return bool(checkpoint.architecture.head_layers) and (point.name == EMBEDDING or point.block.startswith("decoder"))


def choose_scales(
    checkpoint: Checkpoint,
    points: Sequence[QuantizationPoint],
    precision: Precision,
    texts: CalibrationTexts,
    progress: Progress,
    settings: Settings,
) -> dict[str, Choice]:
    """Smoothing of each point that takes it, and the scale of each input that ``precision`` quantizes, by name."""
    rounded = {point.name for point in points if point.graph in precision.activations and point.block}
    wanted = [point for point in points if point.name in rounded or (settings.smooth and can_smooth(point))]
    if not wanted:
        return {}
    choices: dict[str, Choice] = {}
    shared = [point for point in wanted if point.role == "cross_kv"]

    def choose_one(point: QuantizationPoint, sample: Sample) -> None:
        if point.name in choices:
            return
        group = shared if point in shared else [point]
        judged = group[:: max(1, (len(group) - 1) // (SHARED_SAMPLES - 1) or 1)]
        weights = [_weight(checkpoint, member)[:, :: judged_step(member)] for member in judged]
        scheme = point.scheme(precision)
        smooth = settings.smooth and can_smooth(point)
        if scheme is not None:
            observer = OBSERVERS[settings.observer] if point.name in rounded else None
            found = choose(sample, weights, scheme, observer, smooth)
            choices.update(dict.fromkeys((member.name for member in group), found))

    a = checkpoint.architecture
    layers = a.encoder_layers + (a.decoder_layers if any(point.graph == "decoder" for point in wanted) else 0)
    with progress.stage("activation ranges", layers, "layers") as stage:
        collect_inputs(checkpoint, texts.batches, wanted, choose_one, stage.advance)
    return choices


def judged_step(point: QuantizationPoint) -> int:
    """Every so many columns of a point's matrix judge its smoothing."""
    return max(1, point.shape[1] // JUDGED_COLUMNS)


def _weight(checkpoint: Checkpoint, point: QuantizationPoint) -> torch.Tensor:
    """The point's matrix [in, out], float32."""
    sources = tuple(map(Source, point.sources))
    rows = point.shape[1] // len(sources)
    matrix = StackedWeight(sources, (rows,) * len(sources), point.shape[0], transposed=True)
    return evaluate(matrix, checkpoint.read).float()


def plan_roundings(
    points: Sequence[QuantizationPoint], precision: Precision, choices: Mapping[str, Choice]
) -> dict[str, Rounding]:
    """How each point that ``precision`` can quantize is rounded."""
    found = {}
    for point in points:
        scheme, choice = point.scheme(precision), choices.get(point.name)
        if scheme is not None:
            found[point.name] = Rounding(scheme, *((choice.scale, choice.factors) if choice else ()))
    return found


def apply_plan(plan: QuantizationPlan, graphs: Graphs) -> None:
    """Put the plan into every graph: smoothed weight expressions, quantized weights, quantized inputs."""
    models = list(dict(graphs.items()).values())
    in_rows = not any(map(multiplies_by_table, models))
    for model in models:
        apply_smoothing(model, plan.factors)
        quantize_weights(model, plan.precision, plan.excluded_keys, in_rows, plan.scales)
        quantize_activations(model, plan.scales)
