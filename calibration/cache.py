"""Calibration results on disk, under a key of everything they depend on.

The key covers the token ids, how many, the seed, the observer and its settings, the weights, the graphs' matrices and
the precision. A file is written beside its place and renamed, so an interrupted run leaves nothing half-written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.files import write_json
from t5edge.calibration.smoothing import Choice
from t5edge.exporter.graph.weight_expressions import Factors

if TYPE_CHECKING:
    from t5edge.bundle.precision import Precision
    from t5edge.calibration.points import QuantizationPoint
    from t5edge.calibration.texts import CalibrationTexts
    from t5edge.exporter.checkpoint.open import Checkpoint

VERSION = 3
"""Raised whenever the same inputs would give other numbers."""
FOLDER = "T5EDGE_CACHE"
"""Environment variable that names another folder than ~/.cache/t5edge."""


@dataclass(frozen=True)
class CalibrationKey:
    """What was run. Equal weight expressions give equal scales and factors."""

    texts: str
    count: int
    seed: int
    settings: Mapping[str, Any]
    weights: str
    graphs: str
    precision: Mapping[str, Any]
    version: int = VERSION

    @staticmethod
    def of(
        checkpoint: Checkpoint,
        points: Sequence[QuantizationPoint],
        precision: Precision,
        texts: CalibrationTexts,
        settings: Mapping[str, Any],
    ) -> CalibrationKey:
        from t5edge.calibration.texts import SEED

        digest = hashlib.sha256()
        for batch in texts.batches:
            for array in (batch.input_ids, batch.attention_mask, batch.decoder_input_ids):
                digest.update(repr(array.shape).encode() + array.tobytes())
        graphs = json.dumps([asdict(point) for point in points], sort_keys=True)
        return CalibrationKey(
            digest.hexdigest(),
            texts.count,
            SEED,
            dict(settings),
            checkpoint.content_key(),
            hashlib.sha256(graphs.encode()).hexdigest(),
            {
                "weight_bits": precision.weight_bits,
                "block_size": precision.block_size,
                "activations": list(precision.activations),
                "compute": precision.compute,
            },
        )

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, under its keys."""
        return {**self._facts(), "key": self.key}

    def _facts(self) -> dict[str, Any]:
        return {{"precision": "row"}.get(name, name): value for name, value in asdict(self).items()}

    @property
    def path(self) -> Path:
        folder = os.environ.get(FOLDER) or Path.home() / ".cache" / "t5edge"
        return Path(folder) / "calibration" / f"{self.key}.json"


def load_choices(calibration_key: CalibrationKey) -> dict[str, Choice] | None:
    """What an earlier run with this calibration_key chose; None where there is none or it cannot be read."""
    try:
        data = json.loads(calibration_key.path.read_text(encoding="utf-8"))
        return {name: _choice(facts) for name, facts in data["choices"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_choices(calibration_key: CalibrationKey, choices: Mapping[str, Choice]) -> None:
    """Keep the choices for the next run; a cache that cannot be written is no error."""
    data = {"recipe": calibration_key.to_dict(), "choices": {name: _facts(choice) for name, choice in choices.items()}}
    try:
        calibration_key.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(calibration_key.path, data)
    except OSError:
        return


def _facts(choice: Choice) -> dict[str, Any]:
    factors = None if choice.factors is None else choice.factors.exponents.hex()
    return {**asdict(choice), "factors": factors}


def _choice(facts: Mapping[str, Any]) -> Choice:
    factors = None if facts["factors"] is None else Factors(bytes.fromhex(facts["factors"]))
    return Choice(**{**facts, "factors": factors})
