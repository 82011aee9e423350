"""Peak memory of an export, and its time against copying the checkpoint, for checkpoints from 0.9 to 45 GB.

    python benchmarks/export_memory.py --work /big/disk [--shapes base mt5-base 3b 11b xxl-encoder] [--plot memory.png]
    python benchmarks/export_memory.py --work /big/disk --shapes 11b --adapter-rank 16

For each shape a float32 checkpoint is written, a child process exports it, in fp16 or what --precision says and without
verification, and its peak resident memory (``resource.getrusage``, pages of mapped files included) is held against
1.5 GiB + 2 x the largest tensor. The 3b checkpoint is also copied on the same disk; the export may take twice as long.
Both times end with the data on the disk and begin with the checkpoint out of the page cache. Values do not matter,
except that the embedding is so large that the fp16 rescale has to scale tensors. 11b and xxl-encoder, T5 v1.1 XXL's
encoder alone (4.8 B parameters, as diffusion pipelines have it), are sparse files: their times are no measurements.
With --adapter-rank a LoRA adapter of every linear layer is merged while they are read.

Finished shapes are kept in ``results.json`` in the work folder; --again measures them anew. Checkpoints and bundles are
deleted. Needs free disk of 2.5 x the checkpoint (11b: 23 GB), and matplotlib for --plot.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t5edge.bundle.files import write_json
from t5edge.exporter.family.variants import find_variant
from t5edge.progress import Stage

GIB = 2**30
ALLOWED_BYTES = 1.5 * GIB
ALLOWED_TENSORS = 2.0
ALLOWED_COPIES = 2.0
"""The limits: memory is a constant and so many of the largest tensor; time is so many copies."""
TILE = 1 << 24
"""Floats of the random tile that dense checkpoints repeat."""
LARGE_EMBEDDING = 1e4
"""Standard deviation of the embedding: fits fp16 (65504), but not with the headroom that the rescale keeps."""


@dataclass(frozen=True)
class Shape:
    """A published size. ``sparse`` checkpoints hold zeros that take no disk; ``copied`` ones are timed.

    ``encoder``: without the decoder.
    """

    variant: str
    sparse: bool = False
    copied: bool = False
    encoder: bool = False

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name."""
        architecture = find_variant(self.variant).architecture
        return (architecture.without_decoder() if self.encoder else architecture).tensor_shapes()


SHAPES = {
    "base": Shape("google-t5/t5-base"),
    "large": Shape("google-t5/t5-large"),
    "3b": Shape("google-t5/t5-3b", copied=True),
    "mt5-small": Shape("google/mt5-small"),
    "mt5-base": Shape("google/mt5-base"),
    "11b": Shape("google-t5/t5-11b", sparse=True),
    "xxl-encoder": Shape("google/t5-v1_1-xxl", sparse=True, encoder=True),
}


class Stopwatch:
    """A ``Progress`` that notes seconds and the peak so far after each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        from t5edge.progress import Silent

        begin = time.monotonic()
        with Silent().stage(title, total, unit) as stage:
            yield stage
        self.stages[title] = {"seconds": round(time.monotonic() - begin, 2), "peak_gib": round(peak_bytes() / GIB, 3)}

    def message(self, text: str) -> None:
        print(text, file=sys.stderr)


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def export_here(checkpoint: Path, bundle: Path, precision: str) -> None:
    """The child: export, sync, print the measurements as JSON."""
    from t5edge.options import ExportOptions
    from t5edge.pipeline import export_bundle

    progress, begin = Stopwatch(), time.monotonic()
    adapters = tuple(str(folder) for folder in checkpoint.parent.glob("adapter"))
    options = ExportOptions(
        variant=str(checkpoint),
        precision=precision,
        out=str(bundle),
        target=("onnxruntime",),
        adapter=adapters,
        no_verify=True,
    )
    made = export_bundle(options, progress)
    sync(bundle / "weights.safetensors")
    seconds = time.monotonic() - begin
    k = [getattr(made.manifest.rescale, stack).k for stack in made.manifest.architecture.stacks]
    assert min(k) > 0 or not made.manifest.precision.rescale, f"no tensor was scaled: {k}"
    size = (bundle / "weights.safetensors").stat().st_size
    print(json.dumps({"peak": peak_bytes(), "seconds": seconds, "stages": progress.stages, "bundle": size, "k": k}))


def write_checkpoint(shape: Shape, folder: Path) -> Path:
    """config.json and one float32 safetensors file; returns that file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(find_variant(shape.variant).config()))
    path, shapes = folder / "model.safetensors", shape.tensors
    header: dict[str, Any] = {}
    offset = 0
    for name, sizes in shapes.items():
        end = offset + 4 * math.prod(sizes)
        header[name] = {"dtype": "F32", "shape": sizes, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    tile = np.random.default_rng(0).standard_normal(TILE, np.float32)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, sizes in shapes.items():
            if name == "shared.weight" or not shape.sparse:
                file.seek(start + header[name]["data_offsets"][0])
                fill(file, math.prod(sizes), tile * np.float32(LARGE_EMBEDDING if name == "shared.weight" else 0.02))
        file.truncate(start + offset)
    sync(path)
    return path


def write_adapter(shape: Shape, folder: Path, rank: int) -> None:
    """A LoRA adapter of every linear layer of the blocks."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    facts = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": shape.variant}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    random, tensors = np.random.default_rng(0), {}
    for name, sizes in shape.tensors.items():
        if ".block." in name and len(sizes) == 2 and "bias" not in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((rank, sizes[1]), np.float32) * 0.01
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((sizes[0], rank), np.float32) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")


def fill(file: Any, count: int, tile: np.ndarray) -> None:
    """Write ``count`` floats, repeating the tile."""
    for begin in range(0, count, len(tile)):
        file.write(tile[: count - begin].tobytes())


def sync(path: Path) -> None:
    """Have the file's data on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Put the file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_copy(path: Path) -> float:
    """Copy the file beside itself, data on the disk; the copy is deleted."""
    forget(path)
    copy, begin = path.with_name("copy"), time.monotonic()
    shutil.copyfile(path, copy)
    sync(copy)
    seconds = time.monotonic() - begin
    copy.unlink()
    return seconds


def measure(name: str, work: Path, rank: int, precision: str) -> dict[str, Any]:
    """Everything of one shape, in a folder of its own that is removed."""
    shape, folder = SHAPES[name], work / f"t5edge-memory-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        path = write_checkpoint(shape, folder / "checkpoint")
        if rank:
            write_adapter(shape, folder / "adapter", rank)
        copying = {"copy_seconds": seconds_to_copy(path)} if shape.copied else {}
        forget(path)
        command = [sys.executable, __file__, "--child", str(path.parent), str(folder / "bundle")]
        command += ["--precision", precision]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        largest = max(4 * math.prod(sizes) for sizes in shape.tensors.values())
        facts = {
            "checkpoint": path.stat().st_size,
            "largest_tensor": largest,
            "limit": ALLOWED_BYTES + ALLOWED_TENSORS * largest,
        }
        return {**facts, **json.loads(child.stdout.splitlines()[-1]), **copying, "sparse": shape.sparse}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(name: str, found: dict[str, Any]) -> bool:
    """Print one shape; whether it kept its limits."""
    passed = bool(found["peak"] <= found["limit"])
    print(
        f"{name:6} checkpoint {found['checkpoint'] / 1e9:6.2f} GB, peak {found['peak'] / GIB:5.2f} GiB of "
        f"{found['limit'] / GIB:5.2f} GiB allowed, {found['seconds']:6.1f} s  {'ok' if passed else 'TOO MUCH'}"
    )
    for title, stage in found["stages"].items():
        print(f"         {title:18} {stage['seconds']:7.1f} s, peak {stage['peak_gib']:.2f} GiB")
    if "copy_seconds" in found:
        ratio = found["seconds"] / found["copy_seconds"]
        fast = ratio <= ALLOWED_COPIES
        print(
            f"         copying takes {found['copy_seconds']:.1f} s: ratio {ratio:.2f}  {'ok' if fast else 'TOO SLOW'}"
        )
        passed = passed and fast
    return passed


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Peak memory over the checkpoint's size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in SHAPES if name in results]
    sizes = [results[name]["checkpoint"] / GIB for name in names]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    axes.plot([0.4, 64], [0.4, 64], color="0.75", linewidth=1, label="holding the float32 model")
    for key, style in (
        (
            "limit",
            {"color": "#c44e52", "marker": "_", "linestyle": "--", "label": "allowed: 1.5 GiB + 2 largest tensors"},
        ),
        ("peak", {"color": "#1f5fa8", "marker": "o", "label": "peak of the export"}),
    ):
        axes.plot(sizes, [results[name][key] / GIB for name in names], **style)
    for name, size in zip(names, sizes, strict=True):
        peak = results[name]["peak"] / GIB
        axes.annotate(
            f"{name}\n{peak:.2f} GiB", (size, peak), (0, -28), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set(xscale="log", yscale="log", xlim=(0.5, 64), ylim=(0.25, 64))
    axes.set(xlabel="float32 checkpoint (GiB)", ylabel="resident memory (GiB)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(matplotlib.ticker.LogLocator(base=2, numticks=12))
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_title("Exporting T5 to fp16: memory does not follow the model", loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    figure.savefig(path, dpi=160)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder with room for checkpoints and bundles")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--adapter-rank", type=int, default=0, metavar="R", help="merge a LoRA adapter of this rank")
    parser.add_argument("--precision", default="fp16", help="of the bundle; those that calibrate would run the model")
    parser.add_argument("--again", action="store_true", help="measure finished shapes anew")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is None and given.work is None:
        parser.error("--work is missing: name a folder with room for checkpoints and bundles")
    return given


def main() -> int:
    given = parse()
    if given.child is not None:
        export_here(*given.child, given.precision)
        return 0
    given.work.mkdir(parents=True, exist_ok=True)
    kind = [f"lora-{given.adapter_rank}"] * bool(given.adapter_rank) + [given.precision] * (given.precision != "fp16")
    file = given.work / f"{'-'.join(['results', *kind])}.json"
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    passed = []
    for name in given.shapes:
        if given.again or name not in results:
            results[name] = measure(name, given.work, given.adapter_rank, given.precision)
            write_json(file, results)
        passed.append(report(name, results[name]))
    if given.plot is not None:
        plot(results, given.plot)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
