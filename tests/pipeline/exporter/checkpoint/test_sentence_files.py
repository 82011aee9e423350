"""Folders of sentence-transformers: what is read of them, older forms, and what is refused by its name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.encoders import RELU
from support.sentences import TEXTS, Sentences, export, reference
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.parity.ladder import CHECKS, verify
from t5edge.runtime.model import load


def test_older_folders_are_read_alike(sentences: Sentences, tmp_path: Path) -> None:
    """As versions before 6 wrote them: other names and settings, weights by ``torch.save``, the encoder in a folder."""
    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "old"))
    modules = json.loads((folder / "modules.json").read_text())
    for module, kind in zip(modules, ("Transformer", "Pooling", "Dense", "Normalize"), strict=True):
        module["type"] = f"sentence_transformers.models.{kind}"
    modules[0]["path"] = "0_Transformer"
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and "modules" not in path.name]:
        path.rename(folder / "0_Transformer" / path.name)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    pooling = {"word_embedding_dimension": 72, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "3_Normalize" / "config.json").unlink()
    torch.save(load_file(folder / "2_Dense" / "model.safetensors"), folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "model.safetensors").unlink()
    model = load(export(folder, "fp32", tmp_path / "b"))
    np.testing.assert_allclose(model.embed(TEXTS), reference(folder).encode(list(TEXTS)), atol=1e-6)
    assert verify(model.folder, checks=[check for check in CHECKS if check.name in ("weights", "2 encoder")]).passed


def changed(folder: Path, name: str, **settings: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pools by attention; known are cls, max, mean"),
        ("1_Pooling/config.json", {"embedding_dimension": 8}, "pools vectors of 8, its encoder gives 72"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "known are Identity, Tanh",
        ),
        ("2_Dense/config.json", {"activation_function": "mine.ReLU"}, "with the activation mine.ReLU"),
        ("2_Dense/config.json", {"use_residual": True}, "a Dense with a residual"),
        ("2_Dense/config.json", {"out_features": 47}, r"a Dense of .*48, 72.*expected .*47, 72"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "a Dense of token_embeddings"),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "q"},
            "prompt 'q' before every text and has no such",
        ),
    ],
)
def test_what_is_not_exact_is_refused_by_name(
    sentences: Sentences, tmp_path: Path, file: str, settings: dict[str, Any], said: str
) -> None:
    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "model"))
    changed(folder, file, **settings)
    with pytest.raises(UserError, match=said) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "place", "said"),
    [
        ("sentence_transformers.models.LayerNorm", 3, "a module sentence_transformers.models.LayerNorm, which is not"),
        ("sentence_transformers.models.CNN", 1, "has no Pooling behind its transformer"),
        ("sentence_transformers.models.WordEmbeddings", 0, "does not begin with a Transformer"),
    ],
)
def test_other_modules_are_refused_by_name(
    sentences: Sentences, tmp_path: Path, kind: str, place: int, said: str
) -> None:
    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "model"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[place]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=said):
        open_checkpoint(str(folder))
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"modules.json cannot be read .*leaves the folder"):
        open_checkpoint(str(folder))


def test_a_whole_checkpoint_is_cut_or_generates_on_request(sentences: Sentences, tmp_path: Path) -> None:
    """Some folders hold the decoder too: sentence-transformers leaves it out."""
    from t5edge.exporter.checkpoint.random_weights import RandomStore

    folder = Path(shutil.copytree(sentences(RELU), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    changed(folder, "config.json", num_decoder_layers=2, architectures=["T5ForConditionalGeneration"])
    whole = replace(open_checkpoint(str(folder)).architecture, decoder_layers=2)
    store = RandomStore(whole, 0)
    save_file({name: store.read(name) for name in whole.tensor_shapes()}, folder / "model.safetensors")
    assert config["model_type"] == "t5"
    assert open_checkpoint(str(folder)).architecture.encoder_alone
    assert open_checkpoint(str(folder)).sentence is not None
    full = open_checkpoint(str(folder), task="generate")
    assert (full.architecture.decoder_layers, full.sentence) == (2, None)
