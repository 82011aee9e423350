"""A bundle behind transformers' ``generate``: its searches, samplers, stopping rules and streamers, our graphs.

    from transformers import AutoTokenizer
    model = T5EdgeForConditionalGeneration.from_bundle("build/demo")
    tokenizer = AutoTokenizer.from_pretrained("build/demo")
    model.generate(**tokenizer(["spell 1984"], return_tensors="pt"), num_beams=4)

Optional: it loads torch and transformers, which ``t5edge.load`` does without. The encoder runs with the first decoder
step, because only then is it known how many beams a sentence has; ``get_encoder()`` therefore gives the source tokens
and no hidden states.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from t5edge.errors import UserError
from t5edge.runtime.inputs import IGNORED
from t5edge.runtime.model import BundleModel, load


@dataclass
class Source(ModelOutput):
    """What stands for encoder outputs: int64 ``input_ids`` [rows, source], and the ``sentence`` of each row, [rows]."""

    input_ids: torch.Tensor | None = None
    sentence: torch.Tensor | None = None


class SourceEncoder:
    """Hands the source tokens on; transformers repeats them once per beam."""

    main_input_name = "input_ids"

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Source:
        """``input_ids``, ``attention_mask``: int64 [batch, source]."""
        return Source(input_ids=input_ids, sentence=torch.arange(len(input_ids)))

    __call__ = forward


@dataclass
class BundleCache:
    """The backend's state, as ``past_key_values``."""

    step_model: Any
    state: Any
    length: int = 0

    def get_seq_length(self) -> int:
        """Target tokens in the cache."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row ``r`` continues as the old row ``beam_idx[r]``, int64 [rows]."""
        rows = beam_idx.cpu().numpy()
        if (rows != range(len(rows))).any():
            self.step_model.reorder(self.state, rows)


class T5EdgeForConditionalGeneration(GenerationMixin):
    """A loaded bundle with the interface that ``GenerationMixin`` wants; tensors are torch's, on the CPU."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False

    def __init__(self, bundle: BundleModel) -> None:
        self.bundle = bundle
        self.config = AutoConfig.from_pretrained(bundle.folder)
        self.generation_config = GenerationConfig.from_dict(dict(bundle.manifest.generation))
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.encoder = SourceEncoder()

    @classmethod
    def from_bundle(
        cls, folder: str | Path, target: str = "onnxruntime", **settings: Any
    ) -> T5EdgeForConditionalGeneration:
        """Open a bundle; ``settings`` are those of ``t5edge.load``."""
        return cls(load(folder, target, **settings))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _optimize_model_for_decode(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    def can_generate(self) -> bool:
        return True

    def get_encoder(self) -> SourceEncoder:
        return self.encoder

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, decoder_input_ids: torch.Tensor, past_key_values: BundleCache | None = None, **rest: Any
    ) -> dict[str, Any]:
        """Of ``decoder_input_ids`` int64 [rows, target], what the cache does not hold yet."""
        known = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "decoder_input_ids": decoder_input_ids[:, known:],
            "past_key_values": past_key_values,
            "encoder_outputs": rest["encoder_outputs"],
            "attention_mask": rest.get("attention_mask"),
        }

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Source | None = None,
        past_key_values: BundleCache | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Logits float32 [rows, target, vocab] of ``decoder_input_ids`` int64 [rows, target] behind the cache.

        ``input_ids``, ``attention_mask``: int64 [rows, source]; ``encoder_outputs`` instead of ``input_ids``.
        ``labels`` int64 [rows, target], -100 where nothing counts, give a loss, and the decoder's ids where there are
        none: shifted right behind the start token, as in transformers' T5.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise UserError("forward needs decoder_input_ids, or labels to make them from.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if past_key_values is None:
            source = encoder_outputs if encoder_outputs is not None else self.encoder.forward(_given(input_ids))
            past_key_values = self._encode(source, attention_mask)
        tokens = decoder_input_ids.contiguous().numpy()
        logits = torch.tensor(past_key_values.step_model.step(past_key_values.state, tokens))
        past_key_values.length += tokens.shape[1]
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Seq2SeqLMOutput(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """``labels`` int64 [rows, target] behind the start token, their last one left out; -100 becomes padding."""
        generation = self.bundle.options()
        start = labels.new_full((len(labels), 1), generation.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED, generation.pad)

    __call__ = forward

    def _encode(self, source: Source, attention_mask: torch.Tensor | None) -> BundleCache:
        """Run the encoder once per sentence, for as many rows as each has."""
        ids, sentence = _given(source.input_ids), _given(source.sentence)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        copies = len(sentence) // (int(sentence.max()) + 1)
        model = self.bundle.step_model
        first = (ids[::copies].contiguous().numpy(), mask[::copies].to(torch.int64).contiguous().numpy())
        return BundleCache(model, model.encode(*first, copies))


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor
