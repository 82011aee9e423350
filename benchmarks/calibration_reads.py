"""How often calibration reads each tensor of a checkpoint of any published shape, and how long that takes.

    python -m benchmarks.calibration_reads --variant google/t5-v1_1-xxl --texts 1

Weights are random and drawn whenever they are read, so nothing lies on a disk, and a read costs more than one would.
Few and short texts, since it is reads that count. The bundle's weights, written afterwards, are one read more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections import Counter
from dataclasses import replace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="google/t5-v1_1-base")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--source", type=int, default=8)
    parser.add_argument("--target", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["T5EDGE_CACHE"] = folder  # scales that an earlier run has found would spare reads
        print(json.dumps(count(given)))


def count(given: argparse.Namespace) -> dict[str, object]:
    """Reads of the tensor that is read most, of the median one, and bytes read over those of the checkpoint."""
    from t5edge import pipeline
    from t5edge.bundle.precision import precision
    from t5edge.calibration import texts as texts_module
    from t5edge.calibration.plan import make_plan
    from t5edge.exporter.checkpoint.open import open_checkpoint
    from t5edge.exporter.graph.rescale import Rescale
    from t5edge.exporter.graphs import assemble_graphs
    from t5edge.exporter.reference.texts import bundled_examples
    from t5edge.options import ExportOptions
    from t5edge.progress import Silent

    checkpoint, row = open_checkpoint(given.variant, random_weights=0), precision(given.precision)
    share = texts_module.Share(given.texts, given.source, given.target)
    texts_module.SENSITIVITY = texts_module.GATE = share
    options = ExportOptions(given.variant)
    limits = replace(options.limits, max_source_length=given.source, max_target_length=given.target)
    texts = texts_module.calibration_texts(checkpoint, bundled_examples()[: given.texts], limits, "benchmark")
    progress = Silent()
    graphs = assemble_graphs(checkpoint, pipeline.trace_blocks(checkpoint, progress), row, Rescale(), options.form)
    reads, size, read = Counter[str](), Counter[str](), checkpoint.read

    def counted(name: str):
        tensor = read(name)
        reads[name] += 1
        size[name] = tensor.nbytes
        return tensor

    checkpoint.read = counted
    begin = time.monotonic()
    make_plan(checkpoint, graphs, row, texts, progress)
    seconds = time.monotonic() - begin
    matrices = sorted(count for name, count in reads.items() if size[name] > 1e5)
    return {
        "variant": given.variant,
        "precision": row.name,
        "reads of the tensor read most": reads.most_common(1)[0],
        "of the median matrix": matrices[len(matrices) // 2],
        "bytes read over the checkpoint's": sum(size[n] * c for n, c in reads.items()) / sum(size.values()),
        "checkpoint GB": sum(size.values()) / 1e9,
        "seconds": round(seconds, 1),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "most": reads.most_common(6),
    }


if __name__ == "__main__":
    main()
