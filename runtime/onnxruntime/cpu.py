"""ONNX Runtime on the CPU: runs the bundle's graphs as they are, or rounded where it has no kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.version import Version

from t5edge.bundle.manifest import PORTABLE_OPSET, Manifest
from t5edge.errors import UserError, missing_package
from t5edge.progress import Progress, Silent
from t5edge.runtime.backend import find_backend
from t5edge.runtime.onnxruntime.arithmetic import Arithmetic, open_exact
from t5edge.runtime.onnxruntime.buffered import GRAPH, BufferedModel
from t5edge.runtime.onnxruntime.emulation import open_rounded
from t5edge.runtime.onnxruntime.kernels import RECORDED, Kernels, choose, has_choice, tuned
from t5edge.runtime.onnxruntime.model import OnnxRuntimeEncoder, OnnxRuntimeModel
from t5edge.runtime.onnxruntime.sessions import PROVIDERS, Entries, session_entries, session_options
from t5edge.runtime.onnxruntime.threads import thread_candidates
from t5edge.runtime.onnxruntime.tuning import Tuning, measure

NAME = "onnxruntime"
TUNE = ("known", "auto", "off")
SINCE = (1, 27)
"""Found by running them: 1.24 loads no quantized bundle, 1.25 and 1.26 answer wrongly, from 1.27 on all agree.

Of portable ones all agree from 1.17 on."""


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
    tune: str = "known",
    kernels: Mapping[str, Kernels] | None = None,
) -> OnnxRuntimeEncoder:
    """Open the encoder of a bundle, and its decoder that writes its cache in place or else ``decoder.onnx``.

    ``buffers`` False: always ``decoder.onnx``. ``tune``: "known" takes what ``t5edge tune`` has found here, else what
    suits this CPU; "auto" measures first where nothing was found; "off" runs as recorded in the bundle. ``kernels``:
    these, by graph, and else as recorded.

    Raises:
        UserError: onnxruntime is missing or too old for a quantized bundle, or it cannot load a graph.
    """
    recent = _require_version(manifest)
    if kernels is None:
        kernels = _kernels(folder, manifest, tune, threads)
    if manifest.precision.compute in find_backend(target).emulates and tuple(providers) == PROVIDERS:
        threads = threads or kernels.get("encoder", RECORDED).threads
        return open_rounded(folder, manifest, session_options(threads, session_entries(manifest, "encoder")))
    buffered = buffers and recent and tuple(providers) == PROVIDERS
    buffered = buffered and GRAPH in manifest.ports and manifest.precision.compute == "float"
    encoder, arithmetic = open_graph(folder / "encoder.onnx", manifest, "encoder", threads, providers, kernels)
    if manifest.architecture.encoder_alone:
        _give_back_memory()
        return _with_arithmetic(OnnxRuntimeEncoder(encoder), arithmetic)
    file = f"{GRAPH if buffered else 'decoder'}.onnx"
    decoder, _ = open_graph(folder / file, manifest, "decoder", threads, providers, kernels)
    _give_back_memory()
    kind = BufferedModel if buffered else OnnxRuntimeModel
    model = kind(encoder, decoder, manifest.ports["decoder"], rows_share_cross=manifest.rows_share_cross)
    return _with_arithmetic(model, arithmetic)


def tune_bundle(folder: Path, manifest: Manifest, progress: Progress, threads: int | None = None) -> Tuning:
    """Measure the kernels and numbers of threads that a bundle may run with here; later ``open`` takes the fastest.

    With ``threads`` the kernels alone are measured.

    Raises:
        UserError: as ``open``.
    """
    counts = thread_candidates() if threads is None else ()

    def start(kernels: Mapping[str, Kernels]) -> OnnxRuntimeEncoder:
        return open(folder, manifest, threads=threads, kernels=kernels)

    return measure(manifest, start, progress, counts)


def _kernels(folder: Path, manifest: Manifest, tune: str, threads: int | None) -> dict[str, Kernels]:
    """The kernels of each graph; measured first where ``tune`` asks for it and nothing is known."""
    if tune not in TUNE:
        raise UserError(f"tune is {tune!r}; choose one of {', '.join(TUNE)}.")
    graphs = manifest.architecture.stacks
    if tune == "off":
        return {}
    choices = len(thread_candidates()) > 1 or any(has_choice(manifest, graph) for graph in graphs)
    if tune == "auto" and choices and not tuned(manifest):
        tune_bundle(folder, manifest, Silent(), threads)
    return {graph: choose(manifest, graph)[0] for graph in graphs}


def _with_arithmetic(model: OnnxRuntimeEncoder, arithmetic: Arithmetic | None) -> OnnxRuntimeEncoder:
    model.arithmetic = arithmetic
    return model


def _require_version(manifest: Manifest) -> bool:
    """Whether ONNX Runtime is at least ``SINCE``.

    Raises:
        UserError: it is missing, or older and the bundle is quantized and not portable.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime") from error
    recent = is_recent(onnxruntime.__version__)
    if manifest.precision.quantized and not recent and not manifest.portable:
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} computes quantized graphs wrongly or not at all; "
            f"pip install 'onnxruntime>={'.'.join(map(str, SINCE))}' (Python 3.11 or later), or export with --opset "
            f"{PORTABLE_OPSET}"
        )
    return recent


def open_graph(
    path: Path,
    manifest: Manifest,
    graph: str,
    threads: int | None = None,
    providers: Sequence[str] = PROVIDERS,
    kernels: Mapping[str, Kernels] | None = None,
) -> tuple[Any, Arithmetic | None]:
    """A session of "encoder" or "decoder" as it runs on this CPU, and how it multiplies int8 by int8, if it does.

    ``kernels`` by graph, see ``kernels.choose``; None: as recorded.

    Of graphs in float16 ONNX Runtime multiplies nothing in integers here.

    Raises:
        UserError: onnxruntime cannot load the graph.
    """

    def start(entries: Entries) -> Any:
        return _session(path, entries, threads or row.threads, providers)

    row = (kernels or {}).get(graph, RECORDED)
    entries = {**session_entries(manifest, graph), **row.entries}
    if graph in manifest.precision.activations and manifest.precision.compute == "float":
        return open_exact(entries, start, manifest.sums_fit)
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
