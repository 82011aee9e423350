"""Open a bundle's engines on this machine's GPU, after every guard has passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t5edge.bundle.engine_record import EngineRecord
from t5edge.bundle.files import sha256_of
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.gpu import GpuReport, require_gpu
from t5edge.runtime.tensorrt.device import CudaDevice, Device
from t5edge.runtime.tensorrt.flavor import TensorRT, collector_paused, load_tensorrt
from t5edge.runtime.tensorrt.guards import check_engine
from t5edge.runtime.tensorrt.log import make_log, shorten
from t5edge.runtime.tensorrt.records import engine_path, graphs_of, read_record, runtime_cache
from t5edge.runtime.tensorrt.run import Engine, EngineEncoder, EngineModel
from t5edge.runtime.tensorrt.weights import WEIGHTS_FILE, DeviceWeights


def open(folder: Path, manifest: Manifest, target: str, *, cuda_graphs: bool = True) -> EngineEncoder:
    """The engines for the first GPU; the in-place decoder where there are both, none of an encoder alone.

    ``cuda_graphs`` False: every step's kernels are launched one by one.

    Raises:
        UserError: no GPU, the package is missing, no engine for this GPU, or an engine that does not fit.
    """
    found = require_gpu(target)
    tool = load_tensorrt(target)
    records = find_records(folder, manifest, tool, found)
    device = CudaDevice()
    decoder = next((name for name in ("decoder_in_place", "decoder") if name in records), None)
    weights = DeviceWeights(device, folder / WEIGHTS_FILE)
    names = ["encoder", *([] if decoder is None else [decoder])]
    opened = [_open_engine(folder, manifest, tool, records[name], (device, weights, cuda_graphs)) for name in names]
    caches = [kernels for _, kernels in opened if kernels is not None]

    def keep_kernels() -> None:
        for kernels in caches:
            kernels.keep()

    on_done = keep_kernels if caches else None
    engines = [engine for engine, _ in opened]
    if decoder is None:
        return EngineEncoder(engines[0], manifest.limits, on_done)
    in_place, record = decoder == "decoder_in_place", cuda_graphs and not tool.flavor.jit
    return EngineModel(engines[0], engines[1], manifest.limits, in_place=in_place, record=record, on_done=on_done)


def find_records(folder: Path, manifest: Manifest, tool: TensorRT, found: GpuReport) -> dict[str, EngineRecord]:
    """The checked records of the engines for the first GPU.

    Raises:
        UserError: an engine is missing or does not fit.
    """
    target, capability = tool.flavor.target, found.gpus[0].compute_capability
    records: dict[str, EngineRecord] = {}
    for graph in graphs_of(manifest):
        path = engine_path(folder, target, capability, graph)
        record = read_record(path)
        if record is None:
            raise _missing(folder, target, capability, graph)
        check_engine(folder, record, manifest, tool, found)
        if sha256_of(path) != record.sha256:
            raise UserError(f"'{path}' is damaged; build it again: t5edge build '{folder}' --target {target} --force")
        records[graph] = record
    return records


def _missing(folder: Path, target: str, capability: str, graph: str) -> UserError:
    """Names the engines that are there."""
    base = folder / "engines" / target
    others = sorted(path.parent.name for path in base.glob(f"*/{graph}.engine"))
    there = f"; there is one for {', '.join(others)}" if others else ""
    return UserError(
        f"'{folder}' has no {graph} engine of {target} for this GPU, compute capability {capability}{there}. "
        f"Build it here: t5edge build '{folder}' --target {target}"
    )


@collector_paused()
def _open_engine(
    folder: Path,
    manifest: Manifest,
    tool: TensorRT,
    record: EngineRecord,
    shared: tuple[Device, DeviceWeights, bool],
) -> tuple[Engine, KernelCache | None]:
    """Deserialize one engine and make its execution context. ``shared``: device, weights on it, CUDA graphs or not."""
    device, weights, cuda_graphs = shared
    log = make_log(tool)
    runtime = tool.trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine((folder / record.file).read_bytes())
    context, kernels = (None, None) if engine is None else _context(tool, engine, record, cuda_graphs)
    if context is None:
        said = shorten(log.errors[0]) if log.errors else "no reason given"
        raise UserError(
            f"{tool.title} cannot load '{record.file}': {said}. "
            f"Build it here: t5edge build '{folder}' --target {record.target} --force"
        )
    owners, inputs = (runtime, engine, log), weights.inputs(record.weights)
    ports = manifest.ports[record.graph]
    return Engine(context, ports, len(record.profiles), device, owners, inputs), kernels


def _context(tool: TensorRT, engine: Any, record: EngineRecord, cuda_graphs: bool) -> tuple[Any, KernelCache | None]:
    """An execution context. TensorRT-RTX finishes kernels here: it gets its runtime cache and its CUDA graphs."""
    path = runtime_cache(tool, record)
    if path is None:
        return engine.create_execution_context(), None
    config = engine.create_runtime_config()
    kernels = KernelCache(config.create_runtime_cache(), path)
    config.set_runtime_cache(kernels.cache)
    if cuda_graphs:
        config.cuda_graph_strategy = tool.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(config), kernels


class KernelCache:
    """TensorRT-RTX's kernels of one engine, finished on this device, and the file that keeps them between starts."""

    def __init__(self, cache: Any, path: Path) -> None:
        self.cache, self.path, self._kept = cache, path, 0
        if path.is_file():
            data = path.read_bytes()
            cache.deserialize(data)
            self._kept = len(data)

    def keep(self) -> None:
        """Write the file when kernels were added; a home folder that cannot be written costs only that."""
        data = bytes(self.cache.serialize())
        if len(data) == self._kept:
            return
        self._kept = len(data)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_bytes(data)
            partial.replace(self.path)
        except OSError:
            return
