"""An mT5-shaped checkpoint whose SentencePiece tokenizer is trained here, on words drawn in four scripts."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.family.config import architecture_from_config

ALPHABETS = {
    "latin": "abcdefghijklmnoprstuvwyzäöüßéè",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшыьэюя",
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "devanagari": "अआइकखगघचजटडणतदनपबमयरलवसह",
}
PIECES, ROWS = 8000, 8128
"""Pieces of the SentencePiece model, to which transformers adds 100 sentinels; rows of the model, more as in mT5."""
CONFIG = {
    "architectures": ["MT5ForConditionalGeneration"],
    "model_type": "mt5",
    "vocab_size": ROWS,
    "d_model": 72,
    "d_kv": 16,
    "d_ff": 88,
    "num_heads": 3,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def sentences(script: str, count: int, seed: int = 0, words: int = 2500) -> list[str]:
    """Sentences of the script's first ``words`` words, frequent ones more often."""
    drawn = random.Random(script)
    known = ["".join(drawn.choices(ALPHABETS[script], k=drawn.randint(2, 9))) for _ in range(2500)][:words]
    weights = [1 / (rank + 3) for rank in range(len(known))]
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(known, weights, k=draw.randint(3, 12)))}." for _ in range(count)]


def train_sentencepiece() -> bytes:
    """A Unigram model with byte fallback, pad, end and unknown as in mT5."""
    import sentencepiece

    texts = [text for script in ALPHABETS for text in sentences(script, 1500)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        num_sub_iterations=1,
        seed_sentencepiece_size=30000,
        minloglevel=2,
    )
    return model.getvalue()


def save_checkpoint(folder: Path) -> Path:
    """Random weights, the tokenizer as ``spiece.model``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "spiece.model").write_bytes(train_sentencepiece())
    architecture: Architecture = architecture_from_config(CONFIG)
    store = RandomStore(architecture, seed=0)
    save_file({name: store.read(name) for name in store.tensors}, folder / "model.safetensors")
    return folder
