"""ONNX Runtime on an NVIDIA GPU with the cache written in place, and a step replayed as one CUDA graph.

A CUDA graph repeats kernels at the addresses that it was recorded with, so what a step reads and writes lies where it
is for good: in memory of one shape, which the next batch of that shape takes again.

    Sentences : ids and mask [batch, source], cross keys and values; ``source`` is rounded up, so few shapes occur
    Cache     : keys and values of ``capacity`` positions, twice: beams move from one side to the other
    Tokens    : past lengths and tokens as one upload, logits; of one number of positions per step

Only ``decoder_buffered.onnx`` runs so. A shape is recorded when it comes for the second time. Launching the kernels of
a step of t5-base one by one takes twice as long as replaying them (docs/platforms/cuda.md).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.ports import GraphPorts
from t5edge.runtime.onnxruntime.memory import Memory, run_options, unrecorded
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder
from t5edge.runtime.onnxruntime.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from t5edge.runtime.generation.step import Scores, Tokens

FIRST_CAPACITY = 64
"""Positions of a new cache; doubled when they are full."""
IDLE, IDLE_BYTES = 4, 1 << 30
"""Batches that are over whose memory is kept for the next of their shape, and how much of it."""
RECORDED = 256
"""Graphs at most: ONNX Runtime keeps each until the session ends. Further shapes run unrecorded."""
SHORT = 16
"""Tokens of a step up to which it is recorded, and numbers of them whose memory is kept: drafts have few lengths."""
HIDDEN = "last_hidden_state"


def rounded(source: int) -> int:
    """A source length rounded up by less than a quarter: 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320."""
    unit = max(16, 1 << max(0, (source - 1).bit_length() - 3))
    return -(-source // unit) * unit


class Run:
    """Runs of one binding: as it is, and as a CUDA graph from the second on where ``numbers`` has one left."""

    def __init__(self, session: Any, numbers: Iterator[int]) -> None:
        self.binding, self._session, self._numbers = session.io_binding(), session, numbers
        self._options, self._runs = unrecorded(), 0

    def __call__(self) -> None:
        self._runs += 1
        if self._runs == 2 and (number := next(self._numbers, None)) is not None:
            self._options = run_options(number)
        self._session.run_with_iobinding(self.binding, self._options)


@dataclass
class Step:
    """What steps of one number of tokens are fed and give: a run for each side of the cache."""

    fed: Memory
    logits: Memory
    runs: dict[int, Run] = field(default_factory=dict)


@dataclass
class Cache:
    """Keys and values [2 * layers * rows, heads, capacity, d_kv] of one capacity, of one or both sides."""

    capacity: int
    sides: dict[int, Memory]
    steps: dict[int, Step] = field(default_factory=dict)


@dataclass(eq=False)
class Sentences:
    """Everything of one shape: batch, copies of each sentence, source length."""

    shape: tuple[int, int, int]
    ids: Memory
    mask: Memory
    cross: Memory
    hidden: Memory
    encoder: Run
    caches: dict[int, Cache] = field(default_factory=dict)
    last: Scores | None = None
    """Logits of the last step: what is not finite stays in the cache."""

    @property
    def bytes(self) -> int:
        """Of the device."""
        caches = [side for cache in self.caches.values() for side in cache.sides.values()]
        steps = [step.logits for cache in self.caches.values() for step in cache.steps.values()]
        return sum(memory.bytes for memory in (self.cross, self.hidden, *caches, *steps))


@dataclass(eq=False)
class CapturedState:
    """One batch under way. ``past_length`` int64 [rows]: filled positions of ``side`` of ``cache``."""

    sentences: Sentences
    cache: Cache
    past_length: Tokens
    side: int = 0


class CapturedModel(OnnxRuntimeEncoder):
    """The sessions of a bundle behind ``StepModel`` and ``DraftModel``."""

    rows_differ = True

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        ports: GraphPorts,
        device: str,
        start: Callable[[Path], Any],
        *,
        record: bool = True,
    ) -> None:
        """``ports`` are the decoder's; ``device`` and ``start`` as for ``DeviceModel``.

        The decoder takes cross keys, values and mask once per sentence. ``record`` False: no CUDA graphs.
        """
        super().__init__(encoder)
        self.decoder, self._device = decoder, device
        own = [port for port in ports.inputs if port.name.endswith(("decoder.key", "decoder.value"))]
        self._own = [port.name for port in own]
        self._cross = [port.name for port in ports.inputs if port.name.endswith(("encoder.key", "encoder.value"))]
        self._heads, self._d_kv, self._dtype = int(own[0].axes[1]), int(own[0].axes[3]), own[0].dtype
        self._rows = Rows(self._dtype, start, device)
        self._vocab_size = int(ports.outputs[0].axes[2])
        (self._hidden,) = (output for output in encoder.get_outputs() if output.name == HIDDEN)
        self._numbers = {kind: iter(range(1, RECORDED if record else 1)) for kind in ("encoder", "decoder")}
        self._idle: list[Sentences] = []
        self._one_at_a_time = threading.Lock()

    def on_host(self, session: Any, names: Sequence[str], feeds: dict[str, Any]) -> Sequence[Any]:
        """See ``OnnxRuntimeEncoder``; never recorded."""
        with self._one_at_a_time:
            outputs: Sequence[Any] = session.run_with_ort_values(names, feeds, unrecorded())
        return outputs

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> CapturedState:
        """Run the encoder once; start ``copies`` rows per sentence. See ``StepModel.encode``."""
        batch, source = input_ids.shape
        sentences = self._sentences((batch, copies, rounded(source)))
        missing = ((0, 0), (0, sentences.shape[2] - source))
        with self._one_at_a_time:
            sentences.ids.value.update_inplace(np.pad(input_ids, missing))
            sentences.mask.value.update_inplace(np.pad(attention_mask, missing))
            sentences.encoder()
        state = CapturedState(sentences, self._cache(sentences, FIRST_CAPACITY), np.zeros(batch * copies, np.int64))
        weakref.finalize(state, self._give_back, sentences).atexit = False
        return state

    def step(self, state: CapturedState, tokens: Tokens) -> Scores:
        """Advance by ``tokens`` [rows, target]; returns logits float32 [rows, target, vocab]."""
        needed = int(state.past_length.max()) + tokens.shape[1]
        with self._one_at_a_time:
            if needed > state.cache.capacity:
                self._grow(state, needed)
            step = self._step(state, tokens.shape)
            step.fed.value.update_inplace(np.concatenate((state.past_length, tokens.reshape(-1))))
            step.runs[state.side]()
            logits: Scores = step.logits.value.numpy()
        state.past_length = state.past_length + tokens.shape[1]
        state.sentences.last = logits
        return logits

    def keep(self, state: CapturedState, lengths: Tokens) -> None:
        """Row ``r`` goes on behind its first ``lengths[r]`` positions. See ``DraftModel.keep``."""
        state.past_length = np.array(np.broadcast_to(lengths, state.past_length.shape), np.int64)

    def reorder(self, state: CapturedState, rows: Tokens) -> None:
        """Row ``r`` continues the cache of the old row ``rows[r]``: everything moves to the other side."""
        count, cache = len(state.past_length), state.cache
        all_rows = (np.arange(len(self._own))[:, None] * count + rows).reshape(-1)
        with self._one_at_a_time:
            if 1 - state.side not in cache.sides:
                cache.sides[1 - state.side] = self._keys(len(self._own) * count, cache.capacity)
            old, new = cache.sides[state.side], cache.sides[1 - state.side]
            self._rows.into(old, new, all_rows, np.arange(cache.capacity))
        state.side = 1 - state.side
        state.past_length = state.past_length[rows]

    def _give_back(self, sentences: Sentences) -> None:
        """Keep the memory for the next batch of this shape; what may hold values that are not finite goes.

        No lock: it runs wherever the last reference to a state goes, in a thread that holds one too.
        """
        finite = sentences.last is None or bool(np.isfinite(sentences.last).all())
        sentences.last = None
        if finite:
            self._idle.append(sentences)
        while len(self._idle) > IDLE or sum(idle.bytes for idle in self._idle) > IDLE_BYTES:
            with suppress(IndexError):  # another thread was first
                self._idle.pop(0)

    def _sentences(self, shape: tuple[int, int, int]) -> Sentences:
        """Memory of one shape that no batch under way holds."""
        for idle in [idle for idle in self._idle if idle.shape == shape]:
            with suppress(ValueError):  # another thread was first
                self._idle.remove(idle)
                return idle
        batch, _, source = shape
        made = Sentences(
            shape,
            self._memory((batch, source), "int64"),
            self._memory((batch, source), "int64"),
            self._keys(len(self._cross) * batch, source),
            self._memory((batch, source, self._hidden.shape[2]), self._hidden.type[len("tensor(") : -1]),
            Run(self.encoder, self._numbers["encoder"]),
        )
        binding = made.encoder.binding
        binding.bind_input("input_ids", *made.ids.whole())
        binding.bind_input("attention_mask", *made.mask.whole())
        binding.bind_output(HIDDEN, *made.hidden.whole())
        for name, part in zip(self._cross, made.cross.parts(len(self._cross)), strict=True):
            binding.bind_output(name.replace("past_key_values", "present"), *part)
        return made

    def _cache(self, sentences: Sentences, capacity: int) -> Cache:
        if capacity not in sentences.caches:
            rows = sentences.shape[0] * sentences.shape[1]
            sentences.caches[capacity] = Cache(capacity, {0: self._keys(len(self._own) * rows, capacity)})
        return sentences.caches[capacity]

    def _grow(self, state: CapturedState, needed: int) -> None:
        """Go on in a cache with room for ``needed`` positions; what is behind the old ones is not read."""
        old, rows = state.cache, len(state.past_length)
        capacity = old.capacity
        while capacity < needed:
            capacity *= 2
        cache = self._cache(state.sentences, capacity)
        positions = np.arange(capacity) % old.capacity
        self._rows.into(old.sides[state.side], cache.sides[0], np.arange(len(self._own) * rows), positions)
        state.cache, state.side = cache, 0

    def _step(self, state: CapturedState, shape: tuple[int, ...]) -> Step:
        """What a step of ``shape`` [rows, target] needs, bound to the state's side of its cache."""
        cache, (rows, target) = state.cache, shape
        step = cache.steps.pop(target, None)
        if step is None:
            logits = self._memory((rows, target, self._vocab_size), "float")
            step = Step(self._memory((rows * (1 + target),), "int64"), logits)
        cache.steps[target] = step  # the least recently used is the first
        if len(cache.steps) > SHORT:
            del cache.steps[next(iter(cache.steps))]
        if state.side not in step.runs:
            step.runs[state.side] = run = Run(self.decoder, self._numbers["decoder"] if target <= SHORT else iter(()))
            self._bind_step(run.binding, step, (rows, target), state)
        return step

    def _bind_step(self, binding: Any, step: Step, shape: tuple[int, int], state: CapturedState) -> None:
        sentences = state.sentences
        binding.bind_input("past_length", *step.fed.view(0, shape[:1]))
        binding.bind_input("input_ids", *step.fed.view(shape[0], shape))
        binding.bind_input("encoder_attention_mask", *sentences.mask.whole())
        for name, part in zip(self._cross, sentences.cross.parts(len(self._cross)), strict=True):
            binding.bind_input(name, *part)
        for name, part in zip(self._own, state.cache.sides[state.side].parts(len(self._own)), strict=True):
            binding.bind_input(name, *part)
            binding.bind_output(name.replace("past_key_values", "present"), *part)
        binding.bind_output("logits", *step.logits.whole())

    def _keys(self, rows: int, positions: int) -> Memory:
        return self._memory((rows, self._heads, positions, self._d_kv), self._dtype)

    def _memory(self, shape: tuple[int, ...], dtype: str) -> Memory:
        try:
            return Memory(shape, dtype, self._device)
        except Exception:  # onnxruntime raises its own classes, all below Exception
            if not self._idle:
                raise
            self._idle.clear()
            return Memory(shape, dtype, self._device)
