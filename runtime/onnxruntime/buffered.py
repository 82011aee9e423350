"""ONNX Runtime on the CPU with the cache written in place: between steps nothing is bound, allocated or copied.

    buffers : [rows, heads, capacity, d_kv], input and output of the decoder at one address; they grow by half
    step    : tokens and ``past_length`` are written into bound arrays; ONNX Runtime writes the logits into another

Only ``decoder_buffered.onnx`` runs so. ONNX Runtime's ``TensorScatter`` leaves the
rest of a cache alone when its input and output are the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.runtime.onnxruntime.lineage import Lineage
from t5edge.runtime.onnxruntime.model import CACHE_START, OnnxRuntimeModel, State

if TYPE_CHECKING:
    from t5edge.bundle.ports import GraphPorts
    from t5edge.runtime.generation.step import Scores, Tokens

GRAPH = "decoder_buffered"
MASK = "encoder_attention_mask"
FIRST_CAPACITY = 64
"""Positions of a new cache, where the graph leaves them open."""


@dataclass(kw_only=True)
class BufferedState(State):
    """``caches`` by the name of the decoder's input; of each row the first ``past_length`` positions are filled.

    ``past_length`` int64 is [rows], or [1] where the graph has one length for all. ``tokens`` and ``logits`` are bound
    as they are; ``memory`` is what ``logits`` of any number of positions lie in, ``arrays`` what ``feeds`` do if not
    in ONNX Runtime's own memory.
    """

    binding: Any
    caches: dict[str, np.ndarray]
    past_length: Tokens
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tokens: Tokens = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    logits: Scores = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    memory: Scores = field(default_factory=lambda: np.zeros(0, np.float32))
    lineage: Lineage = field(init=False)

    def __post_init__(self) -> None:
        self.lineage = Lineage(len(next(iter(self.caches.values()))))

    @property
    def capacity(self) -> int:
        return next(iter(self.caches.values())).shape[2]

    @property
    def length(self) -> int:
        """Positions of the longest row."""
        return int(self.past_length.max())


class BufferedModel(OnnxRuntimeModel):
    """``OnnxRuntimeModel`` for the decoder with buffers. Logits of a step are overwritten by the next one."""

    def __init__(self, encoder: Any, decoder: Any, ports: GraphPorts, *, rows_share_cross: bool = False) -> None:
        super().__init__(encoder, decoder, ports, rows_share_cross=rows_share_cross)
        (length,) = (port for port in decoder.get_inputs() if port.name == "past_length")
        self.rows_differ = not isinstance(length.shape[0], int)

    def start(self, feeds: dict[str, Any], rows: int) -> State:
        """A state with buffers for ``rows`` rows; everything is bound as the decoder's input and output.

        They are empty, or begin with the learnt prefixes in ``feeds``.
        """
        heads, d_kv = self._own_shape
        prefixes, others = self._split(feeds)
        first = max((value.shape()[2] for value in prefixes.values()), default=0)
        shape = (rows, heads, self._fixed_capacity or first + FIRST_CAPACITY, d_kv)
        caches = {name: np.zeros(shape, np.float32) for name in self._present.values()}
        for name, value in prefixes.items():
            caches[name][:, :, :first] = value.numpy()
        length = np.full(rows if self.rows_differ else 1, first, np.int64)
        state = BufferedState(others, first=first, binding=self.decoder.io_binding(), caches=caches, past_length=length)
        for name, value in others.items():
            state.binding.bind_ortvalue_input(name, value)
        state.binding.bind_ortvalue_input("past_length", _value(state.past_length))
        self._bind_caches(state)
        return state

    def _split(self, feeds: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the caches begin with, and what else the decoder takes."""
        own = {name: value for name, value in feeds.items() if name in self._present.values()}
        return own, {name: value for name, value in feeds.items() if name not in own}

    def step(self, state: State, tokens: Tokens) -> Scores:
        """Advance by ``tokens`` [rows, target]; returns logits float32 [rows, target, vocab], valid until the next."""
        assert isinstance(state, BufferedState)
        length = state.length + tokens.shape[1]
        if length > state.capacity:
            self._grow(state, length)
        if tokens.shape != state.tokens.shape:
            self._bind_target(state, tokens.shape)
        state.tokens[...] = tokens
        self.decoder.run_with_iobinding(state.binding)
        state.past_length += tokens.shape[1]
        return state.logits

    def keep(self, state: State, lengths: Tokens) -> None:
        """Row ``r`` goes on behind its first ``lengths[r]`` positions. See ``DraftModel.keep``."""
        assert isinstance(state, BufferedState)
        state.past_length[...] = state.first + (lengths if self.rows_differ else lengths.max())
        state.lineage.forget(int(state.past_length.min()))

    def reorder(self, state: State, rows: Tokens) -> None:
        """Row ``r`` continues the cache of the old row ``rows[r]``; rows that stay are not touched."""
        assert isinstance(state, BufferedState)
        length = state.length
        copies = state.lineage.move(rows, length)
        overwritten = {row for row, _, _ in copies}
        aside = any(old in overwritten for _, old, _ in copies)
        for cache in state.caches.values():
            parts = [cache[old, :, first:length] for _, old, first in copies]
            for (row, _, first), part in zip(copies, [part.copy() for part in parts] if aside else parts, strict=True):
                cache[row, :, first:length] = part

    def refill(self, state: State, row: int, feeds: dict[str, Any], place: int) -> None:
        """Row ``row`` starts anew with source ``place`` of ``feeds``, see ``RefillModel``; sources are padded right."""
        assert isinstance(state, BufferedState)
        source = feeds[MASK].shape()[1]
        if source > state.feeds[MASK].shape()[1]:
            self._bind_cross(state, {name: _widened(value.numpy(), source) for name, value in state.feeds.items()})
        for name, value in state.feeds.items():
            held, new = value.numpy(), feeds[name].numpy()[place]
            if name == MASK:
                held[row, source:] = 0
                held[row, :source] = new
            elif name == CACHE_START:
                held[row] = new
            else:
                held[row, :, :source] = new
        for name, value in self._split(feeds)[0].items():
            state.caches[name][row, :, : state.first] = value.numpy()[place]
        state.past_length[row] = state.first
        state.lineage.forget(0)

    def take(self, state: State, rows: Tokens) -> State:
        """A state of these rows alone; their cross keys, values and mask are one for each row."""
        assert isinstance(state, BufferedState)
        taken = self.start({}, len(rows))
        assert isinstance(taken, BufferedState)
        taken.first, taken.past_length[...] = state.first, state.past_length[rows]
        taken.caches = {name: cache[rows] for name, cache in state.caches.items()}
        self._bind_caches(taken)
        self._bind_cross(taken, {name: value.numpy()[rows] for name, value in state.feeds.items()})
        return taken

    @staticmethod
    def _bind_cross(state: BufferedState, arrays: dict[str, np.ndarray]) -> None:
        """Cross keys, values and mask in memory of our own."""
        state.arrays = arrays
        state.feeds = {name: _value(array) for name, array in arrays.items()}
        for name, value in state.feeds.items():
            state.binding.bind_ortvalue_input(name, value)

    def _bind_target(self, state: BufferedState, shape: tuple[int, ...]) -> None:
        """Tokens and logits for ``shape`` [rows, target]; memory that was larger serves again."""
        size = int(np.prod(shape)) * self._vocab_size
        if size > state.memory.size:
            state.memory = np.empty(size, np.float32)
        state.tokens = np.empty(shape, np.int64)
        state.logits = state.memory[:size].reshape(*shape, self._vocab_size)
        state.binding.bind_ortvalue_input("input_ids", _value(state.tokens))
        state.binding.bind_ortvalue_output("logits", _value(state.logits))

    def _grow(self, state: BufferedState, length: int) -> None:
        """Move the caches into buffers for at least ``length`` positions."""
        capacity = max(length, state.capacity + state.capacity // 2)
        for name, cache in state.caches.items():
            rows, heads, _, d_kv = cache.shape
            wider = np.zeros((rows, heads, capacity, d_kv), cache.dtype)
            wider[:, :, : state.length] = cache[:, :, : state.length]
            state.caches[name] = wider
        self._bind_caches(state)

    def _bind_caches(self, state: BufferedState) -> None:
        for present, past in self._present.items():
            value = _value(state.caches[past])
            state.binding.bind_ortvalue_input(past, value)
            state.binding.bind_ortvalue_output(present, value)


def _widened(array: np.ndarray, source: int) -> np.ndarray:
    """A mask [rows, old] or keys [rows, heads, old, d_kv] with room for ``source`` positions; [rows] as it is."""
    if array.ndim == 1:
        return array
    axis = 1 if array.ndim == 2 else 2
    missing = source - array.shape[axis]
    return np.pad(array, [(0, missing if place == axis else 0) for place in range(array.ndim)])


def _value(array: np.ndarray) -> Any:
    """``array`` as an ``OrtValue`` over the same memory."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)
