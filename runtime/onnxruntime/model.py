"""A bundle's sessions behind the generation loop's protocol, on any provider.

Keys and values stay in ONNX Runtime's own buffers between steps; Python only hands them on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.ports import GraphPorts
from t5edge.runtime.onnxruntime.arithmetic import Arithmetic
from t5edge.runtime.onnxruntime.values import to_value, widened

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Scores, Tokens


CACHE_START = "cache_start"
"""Output of the encoder and input of the decoder where there are learnt prefixes; see ``bundle.ports``."""


@dataclass
class State:
    """One batch under way: mask and cross keys/values, and the self-attention cache of every row.

    A growing cache cannot shrink without a copy, so the one before a step of several tokens is held until the next:
    ``before`` with the tokens ``fed`` to it. ``pending`` are those of them that stay, to be fed again. ``first``
    positions of the cache are those of learnt prefixes.
    """

    feeds: dict[str, Any]
    first: int = field(default=0, kw_only=True)
    before: dict[str, Any] = field(default_factory=dict, kw_only=True)
    fed: Tokens | None = field(default=None, kw_only=True)
    pending: Tokens | None = field(default=None, kw_only=True)


class OnnxRuntimeEncoder:
    """The encoder's session: all that an encoder alone has."""

    arithmetic: Arithmetic | None = None
    """How int8 is multiplied by int8; None where a bundle does not."""

    def __init__(self, encoder: Any) -> None:
        """``encoder``: an ``onnxruntime.InferenceSession``."""
        self.encoder = encoder
        self._encoder_outputs = [output.name for output in encoder.get_outputs()]

    def hidden_and_cross(self, input_ids: Tokens, attention_mask: Tokens) -> dict[str, np.ndarray]:
        """Every encoder output by name, as numpy: last_hidden_state and present.{i}.encoder.key/value.

        bfloat16 is widened to float32.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        outputs = self.on_host(self.encoder, self._encoder_outputs, _values(inputs))
        return {name: widened(value) for name, value in zip(self._encoder_outputs, outputs, strict=True)}

    def execute(self, session: Any, names: Sequence[str], feeds: dict[str, Any]) -> Sequence[Any]:
        """Run a session on ``OrtValue`` inputs; returns the named outputs as such."""
        return self.on_host(session, names, feeds)

    def on_host(self, session: Any, names: Sequence[str], feeds: dict[str, Any]) -> Sequence[Any]:
        """``execute``, with every output in host memory."""
        outputs: Sequence[Any] = session.run_with_ort_values(names, feeds)
        return outputs


class OnnxRuntimeModel(OnnxRuntimeEncoder):
    """Both sessions of a bundle behind the generation loop's ``StepModel`` protocol."""

    rows_differ = False

    def __init__(self, encoder: Any, decoder: Any, ports: GraphPorts, *, rows_share_cross: bool = False) -> None:
        """``ports`` are the decoder's; ``encoder`` and ``decoder`` are ``onnxruntime.InferenceSession``.

        ``rows_share_cross``: the decoder takes cross keys, values and mask once per sentence.
        """
        super().__init__(encoder)
        self.rows_share_cross = rows_share_cross
        self.decoder = decoder
        self._decoder_outputs = [output.name for output in decoder.get_outputs()]
        own = [port for port in ports.inputs if port.name.endswith(("decoder.key", "decoder.value"))]
        self._present = {port.name.replace("past_key_values", "present"): port.name for port in own}
        self._own_shape = (int(own[0].axes[1]), int(own[0].axes[3]))
        self._own_dtype = own[0].dtype
        self._fixed_capacity = own[0].axes[2] if isinstance(own[0].axes[2], int) else None
        self._vocab_size = int(ports.outputs[0].axes[2])

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> State:
        """Run the encoder once; start ``copies`` rows per sentence. See ``StepModel.encode``."""
        return self.start(self.cross(input_ids, attention_mask, copies), len(input_ids) * copies)

    def cross(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> dict[str, Any]:
        """Run the encoder: mask, cross keys and values as the decoder's inputs, for ``copies`` rows per sentence."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        outputs = self.execute(self.encoder, self._encoder_outputs, _values(inputs))
        repeats = 1 if self.rows_share_cross else copies
        mask = np.repeat(attention_mask, repeats, axis=0) if repeats > 1 else attention_mask
        feeds: dict[str, Any] = {"encoder_attention_mask": to_value(mask)}
        for name, value in zip(self._encoder_outputs, outputs, strict=True):
            if name in self._present or name == CACHE_START:  # what the cache of every row begins with
                feeds[self._present.get(name, name)] = self._repeated(value, copies)
            elif name.startswith("present."):
                feeds[name.replace("present", "past_key_values")] = self._repeated(value, repeats)
        return feeds

    def start(self, feeds: dict[str, Any], rows: int) -> State:
        """The state of ``rows`` rows; ``feeds`` holds what the decoder takes besides, and what its cache begins with.

        Without learnt prefixes the cache is empty.
        """
        heads, d_kv = self._own_shape
        empty = to_value(np.zeros((rows, heads, 0, d_kv), DTYPES[self._own_dtype].array), self._own_dtype)
        feeds = dict.fromkeys(self._present.values(), empty) | feeds
        return State(feeds, first=positions_of(feeds[next(iter(self._present.values()))]))

    def step(self, state: State, tokens: Tokens) -> Scores:
        """Advance by ``tokens`` [rows, target]; returns logits float32 [rows, target, vocab]."""
        again = 0 if state.pending is None else state.pending.shape[1]
        fed = tokens if state.pending is None else np.concatenate((state.pending, tokens), axis=1)
        state.pending, state.fed = None, fed
        state.before = {name: state.feeds[name] for name in self._present.values()} if tokens.shape[1] > 1 else {}
        state.feeds["input_ids"] = to_value(fed)
        outputs = self.execute(self.decoder, self._decoder_outputs, state.feeds)
        for name, value in zip(self._decoder_outputs, outputs, strict=True):
            if name in self._present:
                state.feeds[self._present[name]] = value
        logits: Scores = outputs[0].numpy()
        return logits[:, again:]

    def keep(self, state: State, lengths: Tokens) -> None:
        """Go on behind the first ``lengths`` positions, all alike. See ``DraftModel.keep``."""
        length, name = state.first + int(lengths[0]), next(iter(self._present.values()))
        held = positions_of(state.feeds[name])
        if length >= held:
            state.pending = None if state.pending is None else state.pending[:, : length - held]
        elif state.before and state.fed is not None and length >= positions_of(state.before[name]):
            state.pending = state.fed[:, : length - held + state.fed.shape[1]]
            state.feeds |= state.before
        else:
            state.pending = None
            state.feeds |= {name: self._shortened(state.feeds[name], length) for name in self._present.values()}
        state.before = {}

    def _shortened(self, cache: Any, length: int) -> Any:
        """A copy of the first positions."""
        return to_value(cache.numpy()[:, :, :length])

    def reorder(self, state: State, rows: Tokens) -> None:
        """Row ``r`` continues the cache of the old row ``rows[r]``; rows that stay are not touched."""
        (moved,) = np.nonzero(rows != np.arange(len(rows)))
        for name in self._present.values():
            cache = state.feeds[name].numpy()  # a view: what is written is in the OrtValue
            cache[moved] = cache[rows[moved]]

    def _repeated(self, value: Any, copies: int) -> Any:
        """Each row ``copies`` times in a row."""
        return value if copies == 1 else to_value(np.repeat(value.numpy(), copies, axis=0))


def _values(inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: to_value(array) for name, array in inputs.items()}


def positions_of(cache: Any) -> int:
    """Positions in a cache, an ``OrtValue`` [rows, heads, positions, d_kv]."""
    return int(cache.shape()[2])
