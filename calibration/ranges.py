"""The float16 rescale of a checkpoint, from the activations that calibration texts cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t5edge.calibration.texts import choose_examples
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.graph.rescale import Rescale, measure_rescale
from t5edge.exporter.reference.texts import Encoder, Example
from t5edge.progress import Progress, Silent

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.open import Checkpoint

TEXTS = 8
"""Bundled sentences the rescale looks at; its headroom covers the others. Of a user's own file, eight times as many."""
BATCHES = 4


def choose_rescale(
    checkpoint: Checkpoint, calibration: str | tuple[Example, ...] | None, progress: Progress
) -> Rescale:
    """The rescale from activations on real texts: ``calibration``, or bundled sentences."""
    examples, _ = choose_examples(checkpoint, calibration, Silent())
    encoder = Encoder(checkpoint.architecture, tokenizer_json(checkpoint), checkpoint.prompts)
    batches = encoder.batches(examples[: 8 * TEXTS if calibration else TEXTS], BATCHES)
    layers = checkpoint.architecture.encoder_layers + checkpoint.architecture.decoder_layers
    with progress.stage("activation ranges", layers, "layers") as stage:
        return measure_rescale(checkpoint, batches, on_layer=stage.advance)
