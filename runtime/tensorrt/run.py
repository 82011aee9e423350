"""Run engines behind the generation loop's ``StepModel`` protocol, with keys and values on the device throughout.

    concat   : past -> present, two sets of buffers that change places each step: nothing is copied
    in place : one set of buffers, read and written at one address; the step is replayed as a CUDA graph

Per step the host sends one token per row and fetches the logits, or in greedy search one token and one score per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.ports import GraphPorts, Limits, Port
from t5edge.errors import UserError
from t5edge.runtime.tensorrt.device import Buffer, Device, when_unused
from t5edge.runtime.tensorrt.prefixes import CACHE_START, Buffers, start_cache

if TYPE_CHECKING:
    from t5edge.runtime.generation.step import Scores, Tokens

STEP_PROFILE, PREFILL_PROFILE = 0, 1


class Engine:
    """One graph's engine: an execution context, and the ports that say its shapes.

    ``owners`` are objects that the context needs alive: the runtime, the engine, the log. ``weights`` are those that
    the engine reads as inputs.
    """

    def __init__(
        self,
        context: Any,
        ports: GraphPorts,
        profiles: int,
        device: Device,
        owners: tuple[Any, ...] = (),
        weights: Mapping[str, Buffer] | None = None,
    ) -> None:
        self.context, self.ports, self.device, self.owners = context, ports, device, owners
        self.weights = weights or {}
        self.profiles, self._profile = profiles, 0

    def run(self, sizes: Mapping[str, int], addresses: Mapping[str, int], profile: int = STEP_PROFILE) -> None:
        """Bind every tensor by name and queue one run."""
        self.bind(sizes, addresses, profile)
        self.enqueue()

    def bind(self, sizes: Mapping[str, int], addresses: Mapping[str, int], profile: int) -> None:
        """Set every input's shape and every tensor's address."""
        self._use(min(profile, self.profiles - 1))
        for port in self.ports.inputs:
            self._check(self.context.set_input_shape(port.name, port.shape(sizes)), f"the shape of {port.name}")
        weights = {name: buffer.address for name, buffer in self.weights.items()}
        for name, address in {**weights, **addresses}.items():
            self._check(self.context.set_tensor_address(name, address), f"the address of {name}")

    def enqueue(self) -> None:
        """Queue a run with everything as it is bound."""
        self._check(self.context.execute_async_v3(self.device.stream), "to run")

    def _use(self, profile: int) -> None:
        if profile != self._profile:
            self._check(self.context.set_optimization_profile_async(profile, self.device.stream), f"profile {profile}")
            self._profile = profile

    @staticmethod
    def _check(accepted: bool, what: str) -> None:
        if not accepted:
            raise RuntimeError(f"the engine refused {what}")


def size_of(port: Port, sizes: Mapping[str, int]) -> int:
    """Bytes of a port's tensor."""
    return int(np.prod(port.shape(sizes), dtype=np.int64)) * DTYPES[port.dtype].bytes


def _profile_of(target: int) -> int:
    return STEP_PROFILE if target == 1 else PREFILL_PROFILE


def is_own_cache(name: str) -> bool:
    """Whether a port is part of the self-attention cache (cross keys and values are not)."""
    return name.endswith(("decoder.key", "decoder.value"))


@dataclass
class State:
    """One batch under way.

    Attributes:
        rows, source: sizes of the batch.
        length: positions in the cache; the ``first`` of them are those of learnt prefixes.
        before: positions that it had before the last step.
        fed: the last step's tokens.
        pending: tokens to be fed again, in front of the next ones: drafted ones that stay where a cache cannot shrink.
        fixed: mask and cross keys/values, by the decoder's port name.
        past, spare: the cache, by ``past_key_values`` name; ``spare`` is empty for the in-place form.
        outputs: logits and best tokens, for ``target`` positions.
        replay: how to queue one more step of the same shapes, once it has been recorded.
    """

    rows: int
    source: int
    fixed: Buffers
    past: Buffers
    spare: Buffers
    length: int = 0
    first: int = 0
    before: int = 0
    fed: Tokens | None = None
    pending: Tokens | None = None
    outputs: Buffers = field(default_factory=dict)
    target: int = 0
    steps: int = 0
    replay: Callable[[], None] | None = None

    def sizes(self, target: int) -> dict[str, int]:
        return {"batch": self.rows, "source": self.source, "target": target, "past": self.length}


class EngineEncoder:
    """The encoder's engine: all that an encoder alone has."""

    def __init__(self, encoder: Engine, limits: Limits, on_done: Callable[[], None] | None = None) -> None:
        """``on_done`` is called after each batch."""
        self.encoder, self.limits, self.on_done, self.device = encoder, limits, on_done, encoder.device

    def hidden_and_cross(self, input_ids: Tokens, attention_mask: Tokens) -> dict[str, np.ndarray]:
        """Every encoder output by name, as numpy (bfloat16 widened to float32)."""
        batch, source = input_ids.shape
        self._check_sizes(batch, source)
        outputs = self._run_encoder(input_ids, attention_mask)
        sizes = {"batch": batch, "source": source}
        found = {
            port.name: self._fetched(outputs[port.name], port.shape(sizes), port.dtype)
            for port in self.encoder.ports.outputs
        }
        if self.on_done is not None:
            self.on_done()
        return found

    def _run_encoder(self, input_ids: Tokens, attention_mask: Tokens) -> Buffers:
        """Every encoder output in a buffer of its own; the run is complete on return."""
        batch, source = input_ids.shape
        sizes = {"batch": batch, "source": source}
        inputs = {"input_ids": self._uploaded(input_ids), "attention_mask": self._uploaded(attention_mask)}
        outputs = {port.name: Buffer(self.device, size_of(port, sizes)) for port in self.encoder.ports.outputs}
        self.encoder.run(sizes, {name: buffer.address for name, buffer in {**inputs, **outputs}.items()})
        self.device.synchronize()
        return outputs

    def _uploaded(self, array: np.ndarray) -> Buffer:
        data = np.ascontiguousarray(array)
        buffer = Buffer(self.device, data.nbytes)
        self.device.upload(buffer.address, data)
        self.device.synchronize()
        return buffer

    def _fetched(self, buffer: Buffer, shape: tuple[int, ...], dtype: str) -> Any:
        """A buffer's contents as numpy; bfloat16 becomes float32."""
        row = DTYPES[dtype]
        array = np.empty(shape, row.array)
        self.device.download(array, buffer.address)
        self.device.synchronize()
        return row.widened(array)

    def _check_sizes(self, rows: int, source: int) -> None:
        if rows > self.limits.max_batch or source > self.limits.max_source_length:
            raise UserError(
                f"{rows} rows (sentences times beams) of {source} tokens; these engines take up to "
                f"{self.limits.max_batch} rows of {self.limits.max_source_length}. Send less at once, or export with a "
                "larger --max-batch or --max-source-length."
            )


class EngineModel(EngineEncoder):
    """The engines of a bundle as a ``StepModel``."""

    rows_differ = False

    def __init__(
        self,
        encoder: Engine,
        decoder: Engine,
        limits: Limits,
        *,
        in_place: bool,
        record: bool,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        """``record``: replay in-place steps as a CUDA graph (TensorRT-RTX does so by itself).

        ``on_done`` is called after each batch, when its state is gone.
        """
        super().__init__(encoder, limits, on_done)
        self.decoder, self.in_place, self.record = decoder, in_place, record
        self._own = [port for port in decoder.ports.inputs if is_own_cache(port.name)]
        self._vocab = int(decoder.ports.outputs[0].axes[-1])

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> State:
        """Run the encoder once; start ``copies`` rows per sentence. See ``StepModel.encode``."""
        batch, source = input_ids.shape
        rows = batch * copies
        self._check_sizes(rows, source)
        outputs = self._run_encoder(input_ids, attention_mask)
        fixed = {"encoder_attention_mask": self._uploaded(np.repeat(attention_mask, copies, axis=0))}
        for name, buffer in outputs.items():
            if name.startswith("present.") or name == CACHE_START:
                fixed[name.replace("present", "past_key_values")] = self._repeated(buffer, batch, copies)
        past = self._new_cache(rows)
        for buffer in past.values():
            self.device.clear(buffer.address, buffer.size)  # keys that are not written yet must be finite
        capacity = self.limits.max_target_length if self.in_place else None
        length = start_cache(self.device, self._own[0], past, fixed, rows, capacity)
        self.device.synchronize()  # the encoder's own buffers are freed on return
        state = State(rows, source, fixed, past, {} if self.in_place else self._new_cache(rows), length, length)
        if self.on_done is not None:
            when_unused(state, self.on_done)
        return state

    def step(self, state: State, tokens: Tokens) -> Scores:
        """Advance by ``tokens`` [rows, target]; returns logits float32 [rows, target, vocab]."""
        self._advance(state, tokens)
        logits: Scores = self._fetched(state.outputs["logits"], (state.rows, state.target, self._vocab), "float")
        return logits[:, -tokens.shape[1] :]

    def best(self, state: State, tokens: Tokens) -> tuple[Tokens, Scores]:
        """Advance by ``tokens`` [rows, 1]; returns the likeliest next tokens int64 and their logits float32, [rows]."""
        self._advance(state, tokens)
        shape = (state.rows, state.target)
        return (
            self._fetched(state.outputs[BEST_TOKENS], shape, "int64")[:, -1],
            self._fetched(state.outputs[BEST_SCORES], shape, "float")[:, -1],
        )

    def keep(self, state: State, lengths: Tokens) -> None:
        """Go on behind the first ``lengths`` positions, all alike; a growing cache goes back by one step at most.

        Raises:
            UserError: a growing cache should go back further.
        """
        length = state.first + int(lengths[0])
        if self.in_place or length == state.length:
            state.length = length
            return
        if length < state.before or state.fed is None:
            raise UserError("engines whose cache grows cannot draft; export the assistant with --cache in-place.")
        state.past, state.spare = state.spare, state.past
        state.pending, state.length = state.fed[:, : length - state.before], state.before

    def reorder(self, state: State, rows: Tokens) -> None:
        """Row ``r`` continues the cache of the old row ``rows[r]``; copies on the device, moved rows only."""
        moved = [(row, int(old)) for row, old in enumerate(rows) if row != old]
        spares = []
        for port in self._own:
            size = size_of(port, {**state.sizes(1), "batch": 1})
            cache = state.past[port.name].address
            spare = Buffer(self.device, size * len(moved))
            spares.append(spare)
            for slot, (_, old) in enumerate(moved):
                self.device.copy(spare.address + slot * size, cache + old * size, size)
            for slot, (row, _) in enumerate(moved):
                self.device.copy(cache + row * size, spare.address + slot * size, size)
        self.device.synchronize()  # until then the copies need every spare

    def _advance(self, state: State, tokens: Tokens) -> None:
        """Queue one decoder run over ``tokens`` [rows, target] and move the state on."""
        if state.pending is not None:
            tokens = np.concatenate((state.pending, tokens), axis=1)
        state.fed, state.pending, target = tokens, None, tokens.shape[1]
        self._check_length(state, target)
        if state.target != target:
            self._new_outputs(state, target)
        self.device.upload(state.outputs["input_ids"].address, np.ascontiguousarray(tokens))
        if self.in_place:
            length = np.array([state.length], np.int64)
            self.device.upload(state.outputs["past_length"].address, length)
            self._queue_in_place(state, target)
        else:
            self.decoder.run(state.sizes(target), self._addresses(state), _profile_of(target))
            state.past, state.spare = state.spare, state.past
        state.before = state.length
        state.length += target

    def _queue_in_place(self, state: State, target: int) -> None:
        """The first step of a shape runs as it is, the second is recorded, later ones are replayed."""
        if state.replay is None:
            self.decoder.bind(state.sizes(target), self._addresses(state), _profile_of(target))
            if self.record and target == 1 and state.steps == 1:
                state.replay = self.device.capture(self.decoder.enqueue)
        (state.replay or self.decoder.enqueue)()
        state.steps += 1

    def _addresses(self, state: State) -> dict[str, int]:
        """Every decoder tensor's address; the in-place form writes where it reads."""
        present = state.past if self.in_place else state.spare
        caches = {name.replace("past_key_values", "present"): buffer for name, buffer in present.items()}
        named = {**state.fixed, **state.past, **caches, **state.outputs}
        return {name: buffer.address for name, buffer in named.items()}

    def _new_outputs(self, state: State, target: int) -> None:
        sizes = {**state.sizes(target), "past": 0}
        logits = self.decoder.ports.outputs[0]
        self.device.synchronize()
        state.outputs = {
            "input_ids": Buffer(self.device, state.rows * target * 8),
            "logits": Buffer(self.device, size_of(logits, sizes)),
            BEST_TOKENS: Buffer(self.device, state.rows * target * 8),
            BEST_SCORES: Buffer(self.device, state.rows * target * 4),
        }
        if self.in_place:
            state.outputs["past_length"] = Buffer(self.device, 8)
        state.target, state.steps, state.replay = target, 0, None

    def _new_cache(self, rows: int) -> Buffers:
        """Room for the longest target."""
        sizes = {"batch": rows, "past": self.limits.max_target_length}
        return {port.name: Buffer(self.device, size_of(port, sizes)) for port in self._own}

    def _repeated(self, buffer: Buffer, batch: int, copies: int) -> Buffer:
        """Each of ``batch`` rows ``copies`` times in a row."""
        if copies == 1:
            return buffer
        size, repeated = buffer.size // batch, Buffer(self.device, buffer.size * copies)
        for row in range(batch * copies):
            self.device.copy(repeated.address + row * size, buffer.address + row // copies * size, size)
        return repeated

    def _check_length(self, state: State, target: int) -> None:
        if state.length + target > self.limits.max_target_length:
            raise UserError(
                f"the target would have {state.length + target} tokens; these engines take up to "
                f"{self.limits.max_target_length}. Lower max_new_tokens, or export with a larger --max-target-length."
            )


BEST_TOKENS, BEST_SCORES = "best_tokens", "best_scores"
"""Outputs of a decoder engine beyond those of its graph."""
