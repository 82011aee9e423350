"""Three ways to put a learnt prompt in front of a source, timed on encoders of random weights.

ids     virtual tokens are ids behind the vocabulary's: rows are as long as their own prompt and text
index   a number for each row chooses from a table [prompts, longest, d_model]: every row is as long as the longest
input   the embeddings come as a graph input [batch, prompt, d_model], with a mask

python -m benchmarks.prompts --variant google-t5/t5-small --work FOLDER
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from t5edge.bundle.architecture import VIRTUAL_TOKENS
from t5edge.bundle.ports import GraphPorts, Port, encoder_ports
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.encoder import EncoderAssembler
from t5edge.exporter.graph.rescale import StackScale
from t5edge.exporter.graph.trace import trace_blocks
from t5edge.exporter.graphs import save_graphs
from t5edge.kernels.position_bias.fusion import distances, look_up, table_index
from t5edge.kernels.values import constant_value
from t5edge.progress import Silent
from t5edge.runtime.onnxruntime.sessions import session_options

LENGTHS = (20, 100)
"""Virtual tokens of the bundle's two prompts."""
SEED, ROUNDS = 0, 7
CASES = {
    "1 x 32, prompt of 20": (32, (1,)),
    "1 x 32, prompt of 100": (32, (2,)),
    "1 x 32, no prompt": (32, (0,)),
    "4 x 32, prompt of 20": (32, (1,) * 4),
    "4 x 32, both and none": (32, (0, 1, 2, 1)),
}
"""Source tokens, and the prompt of each row: 0 for none."""
Feeds = dict[str, np.ndarray]


class PaddedEncoder(EncoderAssembler):
    """An encoder whose rows have the same number of virtual tokens in front, some of them hidden."""

    def front(self) -> tuple[ir.Value, ir.Value]:
        """Embeddings [batch, prompt, d_model] and mask int64 [batch, prompt], from the inputs or from tables."""
        if "prompt_mask" in self.inputs:
            return self.inputs["prompt_embeddings"], self.inputs["prompt_mask"]
        longest, width = max(LENGTHS), self.architecture.d_model
        table = np.random.default_rng(SEED).normal(size=(3, longest, width)).astype(np.float32)
        mask = np.array([[place >= longest - length for place in range(longest)] for length in (0, *LENGTHS)], np.int64)
        values = (constant_value(table, "prompts"), constant_value(mask, "masks"))
        found = [self.tape.op("Gather", [value, self.inputs["prompt"]]) for value in values]
        return found[0], found[1]

    def encode(self) -> ir.Value:
        a, (front, mask) = self.architecture, self.front()
        hidden = self.tape.op("Concat", [front, self.embed()], {"axis": 1})
        length = self.length(hidden, 1)
        index = table_index(self.tape, distances(self.tape, length, length, None), a.max_distance, a.max_distance)
        seen = self.padding(self.tape.op("Concat", [mask, self.inputs["attention_mask"]], {"axis": 1}))
        bias = look_up(self.tape, self.bias_table(0), index)
        bias = self.tape.op("Where", [seen, bias, self.number(-3e38, "masked")])
        self.flush("encoder/stem")
        for layer in range(a.encoder_layers):
            (hidden,) = self.add_block("encoder", layer, [hidden, bias])
        hidden = self.final_norm(hidden)
        self.flush("encoder/head")
        return hidden


def save(checkpoint: Checkpoint, kind: str, blocks: Any, folder: Path) -> Any:
    """A session of one kind's encoder."""
    import onnxruntime

    a = checkpoint.architecture
    ports = encoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.d_model, "float")
    further = {
        "ids": (),
        "index": (Port("prompt", "int64", ("batch",)),),
        "input": (
            Port("prompt_embeddings", "float", ("batch", "prompt", a.d_model)),
            Port("prompt_mask", "int64", ("batch", "prompt")),
        ),
    }[kind]
    ports = GraphPorts((*ports.inputs, *further), ports.outputs)
    facts = replace(a, virtual_tokens=sum(LENGTHS)) if kind == "ids" else a
    make = EncoderAssembler if kind == "ids" else PaddedEncoder
    model = make(facts, blocks, "float", StackScale(), ports).model()
    table = np.random.default_rng(SEED).normal(size=(sum(LENGTHS), a.d_model)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_graphs(Graphs(model, None, ports, None), _with_table(checkpoint, table), folder, Silent())
    return onnxruntime.InferenceSession(str(folder / "encoder.onnx"), session_options())


def _with_table(checkpoint: Checkpoint, table: np.ndarray) -> Any:
    import torch

    read = checkpoint.read

    class WithTable:
        def read(self, name: str) -> torch.Tensor:
            return torch.from_numpy(table) if name == VIRTUAL_TOKENS else read(name)

    return WithTable()


def feeds_of(kind: str, source: int, prompts: tuple[int, ...], vocab_size: int, width: int) -> Feeds:
    """The inputs of a batch; of the kinds ``ids`` and ``input`` as long as its own longest prompt."""
    ids = np.random.default_rng(SEED).integers(3, vocab_size, (len(prompts), source))
    lengths = [(0, *LENGTHS)[prompt] for prompt in prompts]
    longest = max(lengths)
    if kind == "index":
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "prompt": np.array(prompts)}
    if kind == "input":
        mask = np.array([[place >= longest - length for place in range(longest)] for length in lengths], np.int64)
        front = np.zeros((len(prompts), longest, width), np.float32)
        plain = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return {**plain, "prompt_embeddings": front, "prompt_mask": mask.reshape(len(prompts), longest)}
    found = np.zeros((2, len(prompts), longest + source), np.int64)
    for row, length in enumerate(lengths):
        found[:, row, : length + source] = [
            [*range(vocab_size, vocab_size + length), *ids[row]],
            [1] * (length + source),
        ]
    return {"input_ids": found[0], "attention_mask": found[1]}


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for place in range(ROUNDS + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if place > 1:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", default="google-t5/t5-small")
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.variant, random_weights=SEED)
    a, blocks = checkpoint.architecture, trace_blocks(checkpoint, Silent())
    sessions = {kind: save(checkpoint, kind, blocks, given.work / kind) for kind in ("ids", "index", "input")}
    print("| milliseconds |", " | ".join(sessions), "|")
    print("|---|" + "---|" * len(sessions))
    for case, (source, prompts) in CASES.items():
        runs = {}
        for kind, session in sessions.items():
            feeds = feeds_of(kind, source, prompts, a.vocab_size, a.d_model)
            runs[kind] = lambda session=session, feeds=feeds: session.run(["last_hidden_state"], feeds)
        print(f"| {case} |", " | ".join(f"{found:.1f}" for found in medians(runs).values()), "|", flush=True)


if __name__ == "__main__":
    main()
