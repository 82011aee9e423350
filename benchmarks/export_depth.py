"""How export time grows with depth, weights aside: 6 against 64 layers in both stacks of a narrow model.

    python -m benchmarks.export_depth --work FOLDER

Runs in one process after a warm-up, interleaved; prints the medians and the ratio. Without verification.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import t5edge

CONFIG = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 3, "vocab_size": 1000, "feed_forward_proj": "gated-gelu"}


def export_seconds(work: Path, layers: int, precision: str) -> float:
    folder = work / f"layers-{layers}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"num_layers": layers, "num_decoder_layers": layers}
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", **CONFIG, **sizes}))
    out = work / f"bundle-{layers}-{precision}"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    t5edge.export(str(folder), precision, targets=("onnxruntime",), out=out, random_weights=0, no_verify=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    export_seconds(arguments.work, 6, arguments.precision)
    times: dict[int, list[float]] = {6: [], 64: []}
    for _ in range(arguments.rounds):
        for layers, seconds in times.items():
            seconds.append(export_seconds(arguments.work, layers, arguments.precision))
    medians = {layers: statistics.median(seconds) for layers, seconds in times.items()}
    for layers, seconds in times.items():
        print(f"{layers:3d} layers: {medians[layers]:.2f} s  ({', '.join(f'{value:.2f}' for value in seconds)})")
    print(f"ratio {medians[64] / medians[6]:.2f}")


if __name__ == "__main__":
    main()
