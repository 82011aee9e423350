"""One ONNX graph to one engine: parse, choose the attention's form, profiles, build. TensorRT and TensorRT-RTX alike.

The graph already says every dtype, so the network is strongly typed: TensorRT 10 needs the flag, later ones have no
other kind.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5edge.bundle.engine_record import EngineAttention
from t5edge.bundle.ports import GraphPorts, Limits
from t5edge.engines.attention import Form, find_attentions, shape_attentions
from t5edge.engines.embedding import lift_dequantize
from t5edge.engines.heads import SMALLEST_BATCH
from t5edge.engines.monitor import make_monitor
from t5edge.engines.plan import prove_attention, read_kernels
from t5edge.engines.polygraphy_backend import point_polygraphy
from t5edge.engines.weights import weights_to_inputs
from t5edge.errors import GateError
from t5edge.progress import Progress
from t5edge.runtime.tensorrt.flavor import TensorRT, collector_paused
from t5edge.runtime.tensorrt.log import builder_error, make_log, parser_error
from t5edge.runtime.tensorrt.run import BEST_SCORES, BEST_TOKENS

Sizes = Mapping[str, tuple[int, int, int]]
"""(min, opt, max) of each axis."""


@dataclass(frozen=True)
class EngineSpec:
    """What one engine is built from.

    Attributes:
        onnx: the graph, its weights beside it.
        ports: the graph's inputs and outputs.
        profiles: one or more optimization profiles.
        form: how attention is computed.
        compute_capability: such as ``8.6``; the machine's own for full TensorRT.
        exact_float32: switch TF32 off, so that a float32 graph computes in float32.
        separate: weights that the engine reads as inputs; see ``tensorrt_weights``.
    """

    onnx: Path
    ports: GraphPorts
    profiles: tuple[Sizes, ...]
    form: Form
    compute_capability: str
    exact_float32: bool
    separate: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuiltEngine:
    """A built engine: the plan's bytes, how long it took, and which attentions are fused."""

    plan: memoryview
    seconds: float
    attention: EngineAttention


def engine_profiles(limits: Limits, graph: str, form: Form, num_heads: int) -> tuple[Sizes, ...]:
    """Profiles of a graph. The decoder has two: one token per step, and many tokens at once.

    The step's profile fixes one query row, which buys the one-row attention kernel. A split attention would be fused
    again there, so it has one profile only. A fused single head needs room for a second row: see ``tensorrt_heads``.
    """
    low, middle, high = limits.minimum, limits.optimum, limits.maximum
    if form == "fused" and num_heads == 1:
        high = {**high, "batch": max(high["batch"], SMALLEST_BATCH)}
    whole = {axis: (low[axis], middle[axis], high[axis]) for axis in high}
    if graph == "encoder" or form == "split":
        return (whole,)
    prefill = (1, min(32, limits.max_target_length), limits.max_target_length)
    return ({**whole, "target": (1, 1, 1)}, {**whole, "target": prefill, "past": (0, 0, high["past"])})


@collector_paused()
def build_engine(tool: TensorRT, spec: EngineSpec, progress: Progress, timing_cache: Path | None = None) -> BuiltEngine:
    """Build one engine; ``timing_cache`` is read and written where the flavor has one.

    Raises:
        UserError: the parser or the builder refuses the graph; the message names the node and its layer.
    """
    started = time.monotonic()
    log = make_log(tool)
    builder, network = _parse(tool, spec, log)
    attentions = find_attentions(tool, network)
    shape_attentions(tool, network, attentions, spec.form)
    add_best_token(tool, network)
    lift_dequantize(tool, network)
    weights_to_inputs(tool, network, spec.separate)
    title = f"{spec.onnx.stem} for {tool.flavor.target} {spec.compute_capability}"
    with progress.stage(title) as stage:
        monitor = make_monitor(tool, stage)
        plan = _build(tool, spec, builder, network, monitor, timing_cache)
    if monitor.interrupted is not None:
        raise monitor.interrupted
    if plan is None:
        raise builder_error(tool, spec.onnx.name, spec.compute_capability, log.errors)
    view = memoryview(plan)
    names = [entry.name for entry in attentions]
    proof = prove_attention(spec.form, read_kernels(view), names, len(spec.profiles))
    return BuiltEngine(view, time.monotonic() - started, proof)


def _parse(tool: TensorRT, spec: EngineSpec, log: Any) -> tuple[Any, Any]:
    """A builder and the parsed network."""
    trt = tool.trt
    builder = trt.Builder(log)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(os.fspath(spec.onnx)):
        raise parser_error(tool, spec.onnx.name, parser)
    return builder, network


def add_best_token(tool: TensorRT, network: Any) -> None:
    """Arg-max on the device: outputs ``best_tokens`` int64 and ``best_scores`` float32, both [batch, target, 1].

    Greedy search then moves one number per row to the host instead of a whole vocabulary.
    """
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    logits = next((tensor for tensor in outputs if tensor.name == "logits"), None)
    if logits is None:
        return
    top = network.add_topk(logits, tool.trt.TopKOperation.MAX, 1, 1 << 2)
    top.name = "best"
    tokens = network.add_cast(top.get_output(1), tool.trt.int64)
    tokens.name = "best_as_int64"
    for tensor, name in ((top.get_output(0), BEST_SCORES), (tokens.get_output(0), BEST_TOKENS)):
        tensor.name = name
        network.mark_output(tensor)


def _build(
    tool: TensorRT, spec: EngineSpec, builder: Any, network: Any, monitor: Any, timing_cache: Path | None
) -> Any:
    """Serialized engine through polygraphy, or None when the builder failed."""
    point_polygraphy(tool.flavor)
    from polygraphy.backend.trt import EngineBytesFromNetwork, PostprocessConfig
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    def post(builder: Any, network: Any, config: Any) -> None:
        if spec.exact_float32:
            config.clear_flag(tool.trt.BuilderFlag.TF32)

    cache = None if timing_cache is None else os.fspath(timing_cache)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # polygraphy makes a timing cache RTX has no use for
        config = PostprocessConfig(_config(tool, spec, monitor, cache), post)
        try:
            return EngineBytesFromNetwork((builder, network), config, save_timing_cache=cache)()
        except PolygraphyException:
            return None


def _config(tool: TensorRT, spec: EngineSpec, monitor: Any, timing_cache: str | None) -> Any:
    """Polygraphy's configuration loader for this flavor."""
    from polygraphy.backend.trt import CreateConfig, Profile

    profiles = []
    for sizes in spec.profiles:
        profile = Profile()
        for port in spec.ports.inputs:
            shapes = (port.shape({axis: sizes[axis][end] for axis in sizes}) for end in range(3))
            profile.add(port.name, *shapes)
        profiles.append(profile)
    if tool.flavor.module == "tensorrt":
        return CreateConfig(profiles=profiles, progress_monitor=monitor, load_timing_cache=timing_cache)
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

    capability = tuple(int(part) for part in spec.compute_capability.split("."))
    return CreateConfigRTX(compute_capabilities=[capability], profiles=profiles, progress_monitor=monitor)


def check_attention(spec: EngineSpec, built: BuiltEngine) -> None:
    """The proof must fit the form.

    Raises:
        GateError: an attention that must be fused is not, or one that must not be is.
    """
    proof = built.attention
    if proof.fused is None:
        return
    if spec.form == "fused" and not proof.complete:
        missing = ", ".join(proof.decomposed[:3]) or "none by name"
        raise GateError(
            f"{spec.onnx.name} for compute capability {spec.compute_capability}: {proof.fused} of {proof.expected} "
            f"attentions have a fused kernel (without: {missing}). Build with --no-fuse to accept plain ones."
        )
    if spec.form == "split" and proof.fused:
        raise GateError(
            f"{spec.onnx.name} for compute capability {spec.compute_capability}: the builder fused {proof.fused} "
            "attentions in spite of --no-fuse; use --target onnxruntime."
        )
