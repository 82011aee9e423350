"""Sessions of ONNX Runtime: their options, and the configuration of the CPU's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t5edge.bundle.manifest import Manifest
from t5edge.runtime.onnxruntime.threads import usual_threads

if TYPE_CHECKING:
    import onnxruntime


PROVIDERS = ("CPUExecutionProvider",)


Entries = Mapping[str, str]


ACCURACY = {"session.qdq_matmulnbits_accuracy_level": "4"}


BLOCK = "session.qdq_matmulnbits_block_size"


CONFIGURATION: dict[str, Entries] = {
    "encoder": {"session.force_spinning_stop": "1", **ACCURACY, BLOCK: "256"},
    "decoder": {"session.intra_op.spin_duration_us": "1000", **ACCURACY, BLOCK: "128"},
}
"""Session configuration of the CPU, chosen by measurement and recorded in the manifest; docs/adr/0011."""


def session_options(threads: int | None = None, entries: Entries | None = None) -> onnxruntime.SessionOptions:
    """Session options for the CPU. ``threads``: intra-op threads, None for one per core that this process may use.

    ``entries``: configuration of one graph, see ``session_entries``; None for the encoder's, whose threads stop.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in (CONFIGURATION["encoder"] if entries is None else entries).items():
        options.add_session_config_entry(key, value)
    chosen = usual_threads() if threads is None else threads
    if chosen is not None:
        options.intra_op_num_threads = chosen
    return options


def session_in_memory(
    data: bytes, folder: Path, options: onnxruntime.SessionOptions, removed: Sequence[str] | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU of a serialized graph whose weights lie in ``folder``; ``removed``: optimizers left out."""
    import onnxruntime

    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return onnxruntime.InferenceSession(data, options, providers=list(PROVIDERS), disabled_optimizers=removed)


def session_entries(manifest: Manifest, graph: str) -> Entries:
    """Configuration entries of "encoder" or "decoder" as recorded; older bundles record none and get ours."""
    recorded = CONFIGURATION if manifest.session is None else manifest.session
    return recorded.get(graph, {})
