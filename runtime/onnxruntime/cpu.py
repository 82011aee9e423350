"""ONNX Runtime on the CPU (or another provider): runs the bundle's graphs as they are.

Keys and values stay in ONNX Runtime's own buffers between steps; Python only hands them on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from packaging.version import Version

from t5edge.bundle.dtype import DTYPES
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import GraphPorts
from t5edge.errors import UserError, missing_package
from t5edge.runtime.backend import find_backend
from t5edge.runtime.onnxruntime.arithmetic import Arithmetic, open_exact

if TYPE_CHECKING:
    import onnxruntime

    from t5edge.runtime.generation.step import Scores, Tokens

NAME = "onnxruntime"
PROVIDERS = ("CPUExecutionProvider",)
SINCE = (1, 27)
"""Found by running them: 1.24 loads no quantized bundle, 1.25 and 1.26 answer wrongly, from 1.27 on all agree."""
Entries = Mapping[str, str]
ACCURACY = {"session.qdq_matmulnbits_accuracy_level": "4"}
BLOCK = "session.qdq_matmulnbits_block_size"
CONFIGURATION: dict[str, Entries] = {
    "encoder": {"session.force_spinning_stop": "1", **ACCURACY, BLOCK: "256"},
    "decoder": {"session.intra_op.spin_duration_us": "1000", **ACCURACY, BLOCK: "128"},
}
"""Session configuration of the CPU, chosen by measurement and recorded in the manifest; docs/adr/0011."""


@dataclass
class State:
    """One batch under way: mask and cross keys/values, and the self-attention cache of every row."""

    feeds: dict[str, Any]


class OnnxRuntimeModel:
    """Both sessions of a bundle behind the generation loop's ``StepModel`` protocol."""

    arithmetic: Arithmetic | None = None
    """How int8 is multiplied by int8; None where a bundle does not."""

    def __init__(self, encoder: Any, decoder: Any, ports: GraphPorts, *, rows_share_cross: bool = False) -> None:
        """``ports`` are the decoder's; ``encoder`` and ``decoder`` are ``onnxruntime.InferenceSession``.

        ``rows_share_cross``: the decoder takes cross keys, values and mask once per sentence.
        """
        self.rows_share_cross = rows_share_cross
        self.encoder, self.decoder = encoder, decoder
        self._encoder_outputs = [output.name for output in encoder.get_outputs()]
        self._decoder_outputs = [output.name for output in decoder.get_outputs()]
        own = [port for port in ports.inputs if port.name.endswith(("decoder.key", "decoder.value"))]
        self._present = {port.name.replace("past_key_values", "present"): port.name for port in own}
        self._own_shape = (int(own[0].axes[1]), int(own[0].axes[3]))
        self._own_dtype = DTYPES[own[0].dtype].array
        self._vocab_size = int(ports.outputs[0].axes[2])

    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> State:
        """Run the encoder once; start ``copies`` rows per sentence. See ``StepModel.encode``."""
        from onnxruntime import OrtValue

        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        outputs = self._run(self.encoder, self._encoder_outputs, inputs)
        repeats = 1 if self.rows_share_cross else copies
        mask = np.repeat(attention_mask, repeats, axis=0) if repeats > 1 else attention_mask
        feeds: dict[str, Any] = {"encoder_attention_mask": OrtValue.ortvalue_from_numpy(np.ascontiguousarray(mask))}
        for name, value in outputs.items():
            if name.startswith("present."):
                feeds[name.replace("present", "past_key_values")] = self._repeated(value, repeats)
        return self.start(feeds, len(input_ids) * copies)

    def start(self, feeds: dict[str, Any], rows: int) -> State:
        """The state of ``rows`` rows with an empty cache; ``feeds`` holds what the decoder takes besides."""
        from onnxruntime import OrtValue

        heads, d_kv = self._own_shape
        empty = OrtValue.ortvalue_from_numpy(np.zeros((rows, heads, 0, d_kv), self._own_dtype))
        return State(feeds | dict.fromkeys(self._present.values(), empty))

    def hidden_and_cross(self, input_ids: Tokens, attention_mask: Tokens) -> dict[str, np.ndarray]:
        """Every encoder output by name, as numpy: last_hidden_state and present.{i}.encoder.key/value."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return {name: value.numpy() for name, value in self._run(self.encoder, self._encoder_outputs, inputs).items()}

    def step(self, state: State, tokens: Tokens) -> Scores:
        """Advance by ``tokens`` [rows, target]; returns logits float32 [rows, target, vocab]."""
        from onnxruntime import OrtValue

        state.feeds["input_ids"] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tokens))
        outputs = self.execute(self.decoder, self._decoder_outputs, state.feeds)
        for name, value in zip(self._decoder_outputs, outputs, strict=True):
            if name in self._present:
                state.feeds[self._present[name]] = value
        logits: Scores = outputs[0].numpy()
        return logits

    def reorder(self, state: State, rows: Tokens) -> None:
        """Row ``r`` continues the cache of the old row ``rows[r]``; rows that stay are not touched."""
        (moved,) = np.nonzero(rows != np.arange(len(rows)))
        for name in self._present.values():
            cache = state.feeds[name].numpy()  # a view: what is written is in the OrtValue
            cache[moved] = cache[rows[moved]]

    def execute(self, session: Any, names: Sequence[str], feeds: dict[str, Any]) -> Sequence[Any]:
        """Run a session on ``OrtValue`` inputs; returns the named outputs as such."""
        outputs: Sequence[Any] = session.run_with_ort_values(names, feeds)
        return outputs

    def _run(self, session: Any, names: Sequence[str], inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        from onnxruntime import OrtValue

        feeds = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        return dict(zip(names, self.execute(session, names, feeds), strict=True))

    @staticmethod
    def _repeated(value: Any, copies: int) -> Any:
        from onnxruntime import OrtValue

        return value if copies == 1 else OrtValue.ortvalue_from_numpy(np.repeat(value.numpy(), copies, axis=0))


def session_options(threads: int | None = None, entries: Entries | None = None) -> onnxruntime.SessionOptions:
    """Session options for the CPU. ``threads``: intra-op threads, None for one per core.

    ``entries``: configuration of one graph, see ``session_entries``; None for the encoder's, whose threads stop.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in (CONFIGURATION["encoder"] if entries is None else entries).items():
        options.add_session_config_entry(key, value)
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def session_entries(manifest: Manifest, graph: str) -> Entries:
    """Configuration entries of "encoder" or "decoder" as recorded; older bundles record none and get ours."""
    recorded = CONFIGURATION if manifest.session is None else manifest.session
    return recorded.get(graph, {})


def _give_back_memory() -> None:
    """Return to the system what packing the weights has freed and glibc keeps: t5-base, int8-weight: 82 of 456 MiB."""
    import ctypes

    with suppress(OSError, AttributeError):  # other systems and C libraries have no such file or no malloc_trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def open(
    folder: Path,
    manifest: Manifest,
    target: str = NAME,
    *,
    providers: Sequence[str] = PROVIDERS,
    threads: int | None = None,
    buffers: bool = True,
) -> OnnxRuntimeModel:
    """Open the encoder of a bundle, and its decoder that writes its cache in place or else ``decoder.onnx``.

    ``buffers`` False: always ``decoder.onnx``.

    Raises:
        UserError: onnxruntime is missing or too old for a quantized bundle, or it cannot load a graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime") from error
    from t5edge.runtime.onnxruntime.buffered import GRAPH, BufferedModel

    if manifest.precision.compute in find_backend(target).emulates and tuple(providers) == PROVIDERS:
        from t5edge.runtime.onnxruntime.emulation import open_rounded

        return open_rounded(folder, manifest, session_options(threads, session_entries(manifest, "encoder")))
    recent = is_recent(onnxruntime.__version__)
    if manifest.precision.quantized and not recent:
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} computes quantized graphs wrongly or not at all; "
            f"pip install 'onnxruntime>={'.'.join(map(str, SINCE))}' (Python 3.11 or later)"
        )
    buffered = buffers and recent and GRAPH in manifest.ports and tuple(providers) == PROVIDERS
    encoder, arithmetic = open_graph(folder / "encoder.onnx", manifest, "encoder", threads, providers)
    file = f"{GRAPH if buffered else 'decoder'}.onnx"
    decoder, _ = open_graph(folder / file, manifest, "decoder", threads, providers)
    _give_back_memory()
    kind = BufferedModel if buffered else OnnxRuntimeModel
    model = kind(encoder, decoder, manifest.ports["decoder"], rows_share_cross=manifest.rows_share_cross)
    model.arithmetic = arithmetic
    return model


def open_graph(
    path: Path,
    manifest: Manifest,
    graph: str,
    threads: int | None = None,
    providers: Sequence[str] = PROVIDERS,
) -> tuple[Any, Arithmetic | None]:
    """A session of "encoder" or "decoder" as it runs on this CPU, and how it multiplies int8 by int8, if it does.

    Of graphs in float16 ONNX Runtime multiplies nothing in integers here.

    Raises:
        UserError: onnxruntime cannot load the graph.
    """

    def start(entries: Entries) -> Any:
        return _session(path, entries, threads, providers)

    entries = session_entries(manifest, graph)
    if graph in manifest.precision.activations and manifest.precision.compute == "float":
        return open_exact(entries, start)
    return start(entries), None


def _session(path: Path, entries: Entries, threads: int | None, providers: Sequence[str]) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), session_options(threads, entries), providers=list(providers))
    except Exception as error:  # onnxruntime raises its own classes, all below Exception
        raise UserError(f"onnxruntime {onnxruntime.__version__} cannot load '{path}': {error}") from error


def is_recent(version: str) -> bool:
    """Whether an ONNX Runtime is at least ``SINCE``."""
    return Version(version).release >= SINCE
