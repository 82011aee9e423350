"""A T5 checkpoint as a GGUF file for llama.cpp, without its tokenizer: the benchmark hands over ids.

    python peer_gguf.py f32|q8_0 CHECKPOINT OUT.gguf

Needs numpy, safetensors and gguf: run it with the python that has them. Names and keys are those of llama.cpp's own
``conversion/t5.py``, which reads only checkpoints with a SentencePiece file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(checkpoint: Path, out: Path, dtype: str) -> None:
    """Matrices in ``dtype``, norms and position biases in float32."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    layers = config["num_layers"]
    writer = gguf.GGUFWriter(out, "t5")
    writer.add_context_length(512)
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(layers)
    writer.add_decoder_block_count(config.get("num_decoder_layers") or layers)
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_decoder_start_token_id(config["decoder_start_token_id"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, max(layers, config.get("num_decoder_layers") or 0))
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        own = names.get_name(name, try_suffixes=(".weight",))
        if own is None:
            raise ValueError(f"{name} has no name in GGUF")
        if dtype == "q8_0" and tensor.ndim == 2 and "rel_b" not in own:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(own, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[1])
