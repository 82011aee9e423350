"""What a mutation changes in what a bundle answers: every form of the decoder, long targets, beams, text, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from t5edge.errors import UserError
from t5edge.exporter.reference.texts import Batch, target_mask
from t5edge.parity.judged_texts import judged_texts
from t5edge.parity.ladder import find_checkpoint
from t5edge.parity.measures import compare_logits, relative_error
from t5edge.parity.tokenizer import HARD_TEXTS
from t5edge.parity.workload import Workload, build_workload
from t5edge.runtime.model import BundleModel, load

STEPS = 320
"""Cached steps of the long target."""
BEAMS = 4
HIDDEN = "encoder output"
SOURCE = 600
"""Tokens of the long source."""


@dataclass(frozen=True)
class Effect:
    """``kl`` is the largest mean KL (nats) of the mutated bundle's distributions against the sound one's, ``top1``
    the agreement of best tokens there, ``where`` the question; ``other`` names what else differs.
    """

    kl: float
    top1: float
    where: str
    other: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.where or self.other)


Answers = Mapping[str, Any]


@dataclass
class Probe:
    """Questions to a bundle and to its mutated copies."""

    bundle: Path

    @cached_property
    def workload(self) -> Workload:
        model = load(self.bundle, check=False)
        return build_workload(find_checkpoint(self.bundle, model.manifest, None), model.manifest.limits)

    @cached_property
    def sources(self) -> list[str]:
        manifest = load(self.bundle, check=False).manifest
        return [example.source for example in judged_texts(find_checkpoint(self.bundle, manifest, None))[0]]

    @cached_property
    def sound(self) -> Answers:
        return self.answers(self.bundle)

    @cached_property
    def long(self) -> Batch:
        """One row, its target ``STEPS`` tokens."""
        (batch,) = self.workload.groups["long"].values()
        targets = self.workload.texts.decoder_input_ids
        tail = targets[target_mask(targets, -1)]
        tail = np.resize(tail[tail > 2], STEPS - 1)
        return Batch(batch.input_ids, batch.attention_mask, np.array([[targets[0, 0], *tail]], np.int64))

    def effect(self, folder: Path) -> Effect:
        """The difference between ``folder`` and the sound bundle."""
        try:
            found = self.answers(folder)
        except (UserError, RuntimeError, FloatingPointError) as error:
            return Effect(float("inf"), 0.0, f"{type(error).__name__}: {str(error)[:100]}")
        worst, other = (0.0, 1.0, ""), []
        for name, expected in self.sound.items():
            given = found.get(name)
            if name.startswith(HIDDEN):
                if not np.array_equal(expected, given, equal_nan=True):
                    other.append(f"{name} by {relative_error(given, expected):.2g}")
            elif isinstance(expected, np.ndarray) and expected.dtype == np.float32:
                if not np.array_equal(expected, given, equal_nan=True):
                    errors = compare_logits(given, expected)
                    kl = float(errors.kl.mean())
                    worst = max(worst, (kl, errors.top1(0.0)[0], name), key=lambda entry: (entry[0], entry[2]))
            elif repr(given) != repr(expected):
                other.append(name)
        return Effect(*worst, tuple(other))

    def answers(self, folder: Path) -> Answers:
        """Logits [positions, vocab] float32 by question, and whatever else a bundle answers."""
        found: dict[str, Any] = {}
        for form in (False, True):
            model = load(folder, check=False, buffers=form)
            name = "in buffers" if form else "concatenated"
            found |= {f"{question}, {name}": answer for question, answer in self._numbers(model).items()}
        model = load(folder, check=False)
        found["settings"] = json.dumps(dict(model.manifest.generation), sort_keys=True)
        found["limits"] = repr(model.manifest.limits)
        for path in sorted(folder.glob("*config.json")):
            found[path.name] = path.read_text()
        if (folder / "tokenizer.json").is_file():
            rows = model.tokenizer.ids([*HARD_TEXTS, *self.sources])
            found["ids of texts"] = rows
            found["texts of ids"] = [model.tokenizer.text(row, False) for row in rows]
        return found

    def _numbers(self, model: BundleModel) -> dict[str, Any]:
        texts, long = self.workload.texts, self.long
        mask = target_mask(texts.decoder_input_ids, model.architecture.pad_token_id)
        arrays = (texts.input_ids, texts.attention_mask, texts.decoder_input_ids)
        far = np.resize(texts.input_ids[texts.attention_mask.astype(bool)], (1, SOURCE))
        prompts = self.workload.prompts
        hidden = model.step_model.hidden_and_cross(texts.input_ids, texts.attention_mask)["last_hidden_state"]
        return {
            "texts": model.logits(*arrays)[mask],
            "texts in one pass": model.logits_uncached(*arrays)[mask],
            f"{STEPS} steps": model.logits(long.input_ids, long.attention_mask, long.decoder_input_ids)[0],
            f"source of {SOURCE}": model.logits(far, np.ones_like(far), texts.decoder_input_ids[:1])[0],
            HIDDEN: hidden[texts.attention_mask.astype(bool)].astype(np.float32),
            "rows of beams": _rows_of_beams(model, prompts),
            "beams": model.generate(
                prompts.input_ids, prompts.attention_mask, num_beams=BEAMS, max_new_tokens=24, do_sample=False
            ),
        }


def _rows_of_beams(model: BundleModel, prompts: Batch) -> np.ndarray:
    """Logits [positions, vocab] of ``BEAMS`` rows for each sentence, in cached steps."""
    state = model.step_model.encode(prompts.input_ids, prompts.attention_mask, BEAMS)
    tokens = np.repeat(prompts.decoder_input_ids[:, :8], BEAMS, axis=0)
    steps = [model.step_model.step(state, tokens[:, [place]]).copy() for place in range(tokens.shape[1])]
    return np.concatenate(steps, axis=1).reshape(-1, model.vocab_size)
