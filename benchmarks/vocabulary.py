"""What a trimmed vocabulary buys: an mT5-small shape with 250,100 pieces, and a corpus that needs some of them.

    python -m benchmarks.vocabulary --work FOLDER [--words 20000] [--precision fp32 int8-weight]

Weights are random and pieces are drawn, as are the corpus's words, the frequent ones more often. Prints rows, bytes and
``t5edge bench``'s times of the whole and of the trimmed bundle. Without verification.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import t5edge
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.family.variants import find_variant

PIECES, WORDS_PER_TEXT = 250_100, 12
SCRIPTS = {0x61: 26, 0x430: 32, 0x3B1: 25, 0x10D0: 33, 0xE01: 46, 0x4E00: 2000}
"""First character of a script -> how many are used."""


def save_checkpoint(folder: Path) -> list[str]:
    """An mT5-small with a Unigram tokenizer; returns the pieces that are words, in the order of their ids."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    folder.mkdir(parents=True)
    facts = find_variant("google/mt5-small")
    (folder / "config.json").write_text(json.dumps(facts.config()))
    store = RandomStore(facts.architecture, 0)
    save_file({name: store.read(name) for name in store.tensors}, folder / "model.safetensors")
    draw = random.Random(0)
    alphabets = [[chr(first + index) for index in range(count)] for first, count in SCRIPTS.items()]
    characters = ["▁", *(character for alphabet in alphabets for character in alphabet)]
    words: dict[str, None] = {}
    while len(words) < PIECES - len(characters) - 3:
        words.setdefault("▁" + "".join(draw.choices(draw.choice(alphabets), k=draw.randint(2, 7))))
    pieces = [*words, *characters]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab + [(name, -5.0 - rank / 2e4) for rank, name in enumerate(pieces)], 2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return list(words)


def write_corpus(path: Path, words: list[str], count: int, texts: int) -> None:
    """Texts of ``count`` Latin words, by Zipf's law."""
    draw = random.Random(1)
    latin = [word[1:] for word in words if word[1] < "{"][:count]
    weights = [1 / (rank + 3) for rank in range(len(latin))]
    lines = (" ".join(draw.choices(latin, weights, k=WORDS_PER_TEXT)) for _ in range(texts))
    path.write_text("\n".join(lines), encoding="utf-8")


def times(bundle: Path) -> dict[str, Any]:
    """What ``t5edge bench`` measures."""
    command = [sys.executable, "-m", "t5edge.cli", "bench", str(bundle), "--batch", "1", "--source", "64", "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    given = parser.parse_args()
    shutil.rmtree(given.work / "mt5", ignore_errors=True)
    words = save_checkpoint(given.work / "mt5")
    corpus = given.work / "texts.txt"
    write_corpus(corpus, words, given.words, given.texts)
    for precision in given.precision:
        for name, options in (("whole", {}), ("trimmed", {"vocabulary": corpus})):
            out = given.work / f"{name}-{precision}"
            settings = {"targets": ("onnxruntime",), "out": out, "force": True, "no_verify": True, **options}
            made = t5edge.export(str(given.work / "mt5"), precision, **settings).manifest
            print(f"{name} {precision}: {made.architecture.vocab_size} rows, {made.stored_bytes / 1e6:.1f} MB")
            if made.vocabulary is not None:
                print(f"  {made.vocabulary.held_out_same} of {made.vocabulary.held_out_texts} held-out texts as before")
            for row in times(out)["rows"]:
                print(f"  {row}")


if __name__ == "__main__":
    main()
