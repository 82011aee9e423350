"""From fused blocks to the files of a bundle: assemble every graph, write graphs and weights, copy the small files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from t5edge.bundle.costs import GraphCosts
from t5edge.bundle.files import VOCABULARY, write_json
from t5edge.bundle.manifest import GRAPHS
from t5edge.bundle.precision import Precision
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import Checkpoint
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.exporter.form import Form
from t5edge.exporter.graph.assemble import Graphs, assemble
from t5edge.exporter.graph.costs import graph_costs
from t5edge.exporter.graph.in_place import add_in_place
from t5edge.exporter.graph.portable import check_file, is_portable, make_portable
from t5edge.exporter.graph.rescale import Rescale
from t5edge.exporter.graph.whole_heads import keep_heads_together
from t5edge.exporter.graph.write import SLICE_BYTES, attach, plan_weights, write_weights
from t5edge.exporter.layouts.optimum import add_optimum
from t5edge.kernels.block import Block, BlockKind
from t5edge.progress import Progress


@dataclass(frozen=True)
class SavedGraphs:
    """What was written: the sha256 of the weights file, and the costs of encoder and decoder."""

    weights_sha256: str
    costs: Mapping[str, GraphCosts]


def assemble_graphs(
    checkpoint: Checkpoint, blocks: Mapping[BlockKind, Block], row: Precision, rescale: Rescale, form: Form
) -> Graphs:
    """Encoder and decoder, the decoder's in-place forms (for ONNX Runtime, for engines that ask), another layout's.

    An encoder alone is one graph.

    Raises:
        UserError: another layout has no place for learnt prefixes.
    """
    if form.layout == "optimum" and checkpoint.architecture.prefix_lengths:
        raise UserError("prefixes of PREFIX_TUNING have no place in --layout optimum; leave one of them out.")
    facts = (checkpoint.architecture, blocks, row.compute, rescale)
    graphs = assemble(*facts, None if checkpoint.sentence is None else checkpoint.sentence.facts)
    if graphs.decoder is None:
        return graphs
    if not form.portable:
        graphs = add_in_place(graphs, *facts)
    if form.cache != "concat":
        graphs = add_in_place(graphs, *facts, form.max_target_length)
    if form.layout == "optimum":
        graphs = add_optimum(graphs, *facts)
    return graphs


def finish_graphs(graphs: Graphs, checkpoint: Checkpoint, form: Form) -> None:
    """The last pass over assembled, rescaled and quantized graphs, in place: older operators, or fewer of them.

    Raises:
        FusionError: a graph is not what the pass expects.
    """
    if form.portable:
        make_portable(graphs)
    else:
        keep_heads_together(graphs.encoder, checkpoint.architecture)


def save_graphs(graphs: Graphs, checkpoint: Checkpoint, folder: Path, progress: Progress) -> SavedGraphs:
    """Write every graph and their one weights file."""
    plan = plan_weights(model for _, model in graphs.items())
    with progress.stage("weights", plan.size, "bytes") as stage:
        rows = partial(checkpoint.read_slices, size=SLICE_BYTES)
        digest = write_weights(plan, checkpoint.read, folder, stage.advance, rows)
    for name, model in graphs.items():
        attach(model, plan, folder)
        ir.save(model, folder / f"{name}.onnx")
        if is_portable(model):
            check_file(folder / f"{name}.onnx")
    costs = {name: graph_costs(model) for name, model in graphs.items() if name in GRAPHS}
    return SavedGraphs(digest, costs)


def copy_small_files(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json as it was, generation_config.json, tokenizer.json where there is one, and which ids were kept."""
    write_json(folder / "config.json", checkpoint.config)
    write_json(folder / "generation_config.json", checkpoint.generation_config)
    if checkpoint.vocabulary is not None:
        write_json(folder / VOCABULARY, {"kept": checkpoint.vocabulary.kept})
    tokenizer = tokenizer_json(checkpoint)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer)
