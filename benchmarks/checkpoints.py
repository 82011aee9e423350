"""Local checkpoints of any shape for benchmarks: random weights, and a synthetic tokenizer that every peer reads.

python -m benchmarks.checkpoints google-t5/t5-base FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def save_checkpoint(variant: str, folder: Path, seed: int = 0) -> None:
    """Write ``variant``'s structure with random weights as transformers would; a token per word ``w0``, ``w1``, ..."""
    import torch

    from t5edge.exporter.checkpoint.open import open_checkpoint
    from t5edge.exporter.reference.whole import build_torch_model

    checkpoint = open_checkpoint(variant, random_weights=seed)
    model = build_torch_model(checkpoint, torch.float32)
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"decoder_start_token_id": 0, "architectures": ["T5ForConditionalGeneration"]}
    config["tie_word_embeddings"] = checkpoint.architecture.scale_logits  # what transformers 4 reads
    path.write_text(json.dumps(config, indent=2))
    _save_tokenizer(folder, checkpoint.architecture.vocab_size)


def _save_tokenizer(folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁w{index}", -float(index)) for index in range(vocab_size - len(special))]
    tokenizer = Tokenizer(models.Unigram(special + words, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_checkpoint(arguments.variant, arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
