"""Writing the t5-demo folder: configuration, fp16 weights, tokenizer, calibration and held-out files."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from data import calibration_prompts, held_out_pairs
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import T5Config, T5ForConditionalGeneration

PAD, EOS, UNK = 0, 1, 2
SPECIALS = ["<pad>", "</s>", "<unk>"]
VOCAB_SIZE = 240  # a ceiling: the corpus yields 187
MAX_PIECE = 6
CALIBRATION_COUNT, CALIBRATION_SEED = 256, 1
HELD_OUT_COUNT, HELD_OUT_SEED = 200, 2

ARCHITECTURE: dict[str, Any] = {
    "d_model": 128,
    "d_kv": 24,
    "d_ff": 320,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}


def build_tokenizer(corpus: list[str]) -> Tokenizer:
    """A BPE tokenizer trained on ``corpus``: pieces of at most MAX_PIECE characters, single digits.

    A space is written U+2581 and kept with the word after it; text is never normalised, so decoding gives the
    text back exactly.  Encoding appends ``</s>``.
    """
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="never", split=True)
    digits = pre_tokenizers.Split(Regex("[0-9]"), behavior="isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence([metaspace, digits])
    tok.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIALS, max_token_length=MAX_PIECE, show_progress=False
    )
    tok.train_from_iterator(corpus, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    return tok


def build_model(vocab_size: int) -> T5ForConditionalGeneration:
    """A freshly initialised fp32 T5 v1.1 model: its own lm_head [vocab, d_model], unscaled decoder output.

    transformers 5 always ties the embeddings of a new T5, so the head gets a parameter of its own here.
    """
    config = T5Config(vocab_size=vocab_size, tie_word_embeddings=False, **ARCHITECTURE)
    config.scale_decoder_outputs = False
    model = T5ForConditionalGeneration(config)
    d_model = int(ARCHITECTURE["d_model"])
    model.lm_head.weight = torch.nn.Parameter(torch.randn(vocab_size, d_model) * d_model**-0.5)
    return model


def fp16_state(model: T5ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The weights as float16 under their transformers names, each tensor once."""
    skip = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    state = model.state_dict()
    return {k: v.detach().to(torch.float16).contiguous() for k, v in state.items() if k not in skip}


def config_json(vocab_size: int) -> dict[str, Any]:
    """The shipped config.json, readable by transformers 4 ("torch_dtype") and 5 ("dtype")."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": vocab_size,
        **ARCHITECTURE,
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "initializer_factor": 1.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def generation_json() -> dict[str, Any]:
    """The shipped generation_config.json: greedy, at most 64 new tokens."""
    return {
        "decoder_start_token_id": PAD,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": 64,
    }


def tokenizer_config_json() -> dict[str, Any]:
    """The shipped tokenizer_config.json, for AutoTokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 128,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(folder: Path, model: T5ForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Write every file of the checkpoint but its README into ``folder``, each put in place atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        temp = Path(name)
        save_file(fp16_state(model), temp / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(temp / "tokenizer.json"))
        _write_json(temp / "config.json", config_json(tokenizer.get_vocab_size()))
        _write_json(temp / "generation_config.json", generation_json())
        _write_json(temp / "tokenizer_config.json", tokenizer_config_json())
        prompts = calibration_prompts(CALIBRATION_COUNT, CALIBRATION_SEED)
        (temp / "calibration.txt").write_text("".join(f"{p}\n" for p in prompts), encoding="utf-8")
        rows = [{"source": s, "target": t} for s, t in held_out_pairs(HELD_OUT_COUNT, HELD_OUT_SEED)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (temp / "heldout.jsonl").write_text(lines, encoding="utf-8")
        for path in sorted(temp.iterdir()):
            path.chmod(0o644)
            os.replace(path, folder / path.name)
