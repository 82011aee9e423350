"""PEFT adapters merged while a tensor is read, against peft: merged and not merged."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import t5edge
from support.adapters import EVERY_LINEAR, example_ids, logits, merged, save_adapter, unmerged
from support.exports import Exports, checks
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.bundle.files import sha256_of
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.adapters import open_adapter
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.family.variants import find_variant
from t5edge.exporter.reference.whole import build_torch_model
from t5edge.parity.ladder import verify

RELU, GATED, SILU, PER_LAYER_BIAS = "t5-tiny", "v1.1-tiny", "ul2-tiny", "umt5-tiny"


def lora(*more: str, **settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM", **{"r": 4, "lora_alpha": 6, "target_modules": [*EVERY_LINEAR, *more], **settings}
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def make(name: str) -> Path:
        return root / name if (root / name).exists() else save_tiny_model(find_tiny_model(name), root / name, seed=0)

    return make


def assert_equal_logits(checkpoint: Checkpoint, *models: Any) -> None:
    size = checkpoint.architecture.vocab_size
    ours = logits(build_torch_model(checkpoint, torch.float32), size)
    for model in models:
        theirs = logits(model, size)
        assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("tiny", "config"),
    [
        (RELU, lora()),
        (GATED, lora("lm_head")),
        (SILU, lora("lm_head", use_rslora=True)),
        (PER_LAYER_BIAS, lora("lm_head", use_dora=True)),
        (GATED, lora(rank_pattern={r"block\.1\..*\.q": 2, "wo": 3}, alpha_pattern={"decoder.*k": 20, "wi_1": 1})),
        (GATED, lora(modules_to_save=["lm_head", "final_layer_norm"])),
        (RELU, lora(target_modules="all-linear", exclude_modules="lm_head", fan_in_fan_out=True)),
        (GATED, peft.LoHaConfig(r=3, alpha=5, target_modules=["q", "wo", "lm_head"], task_type="SEQ_2_SEQ_LM")),
        (RELU, peft.LoKrConfig(r=3, alpha=5, target_modules=["q", "k", "wi"], task_type="SEQ_2_SEQ_LM")),
        (RELU, peft.LoKrConfig(r=2, decompose_both=True, decompose_factor=4, target_modules=["v", "wo"])),
        (GATED, peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_logits_are_those_of_peft(
    base: Callable[[str], Path], tmp_path: Path, tiny: str, config: peft.PeftConfig
) -> None:
    adapter = save_adapter(base(tiny), tmp_path / "adapter", config)
    plain = open_checkpoint(str(base(tiny)))
    checkpoint = open_checkpoint(str(base(tiny)), adapters=[str(adapter)])
    assert_equal_logits(checkpoint, unmerged(base(tiny), adapter), merged(base(tiny), adapter))
    assert checkpoint.architecture == plain.architecture
    assert checkpoint.content_key() != plain.content_key()
    changed = [name for name in plain.names() if not torch.equal(plain.read(name), checkpoint.read(name))]
    assert len(changed) == checkpoint.adapters[0].modules


def test_two_adapters_in_sequence(base: Callable[[str], Path], tmp_path: Path) -> None:
    first = save_adapter(base(GATED), tmp_path / "first", lora(), seed=1)
    second = save_adapter(base(GATED), tmp_path / "second", lora("lm_head", use_dora=True, r=2), seed=2)
    checkpoint = open_checkpoint(str(base(GATED)), adapters=[str(first), str(second)])
    assert_equal_logits(checkpoint, unmerged(base(GATED), first, second), merged(base(GATED), first, second))
    assert [facts.source for facts in checkpoint.adapters] == [str(first), str(second)]
    swapped = open_checkpoint(str(base(GATED)), adapters=[str(second), str(first)])
    assert swapped.content_key() != checkpoint.content_key()


@pytest.mark.parametrize("config", [lora("lm_head"), lora(modules_to_save=["lm_head"])], ids=["trained", "replaced"])
def test_a_tied_output_layer_of_its_own_is_untied(
    base: Callable[[str], Path], tmp_path: Path, config: peft.PeftConfig
) -> None:
    """As the unmerged model computes it: peft's merge in place changes the embedding too."""
    adapter = save_adapter(base(RELU), tmp_path, config)
    checkpoint = open_checkpoint(str(base(RELU)), adapters=[str(adapter)])
    assert not checkpoint.architecture.tied
    assert checkpoint.architecture.scale_logits
    assert torch.equal(checkpoint.read("shared.weight"), open_checkpoint(str(base(RELU))).read("shared.weight"))
    assert_equal_logits(checkpoint, unmerged(base(RELU), adapter))


def test_half_precision_is_rounded_once(base: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(RELU), tmp_path / "adapter", lora())
    weights = load_file(base(RELU) / "model.safetensors")
    save_tiny_model(find_tiny_model(RELU), tmp_path / "half", seed=0)
    save_file({name: part.bfloat16() for name, part in weights.items()}, tmp_path / "half" / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "half"), adapters=[str(adapter)])
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert checkpoint.dtype(name) == "float32"
    assert checkpoint.dtype("shared.weight") == "bfloat16"
    parts = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    exact = weights[name].bfloat16().double() + 1.5 * (
        parts[f"{stem}.lora_B.weight"].double() @ parts[f"{stem}.lora_A.weight"].double()
    )
    torch.testing.assert_close(checkpoint.read(name).double(), exact, rtol=1e-6, atol=1e-6)


def test_an_adapter_as_the_variant_finds_its_base(base: Callable[[str], Path], tmp_path: Path) -> None:
    first = save_adapter(base(GATED), tmp_path / "first", lora())
    second = save_adapter(base(GATED), tmp_path / "second", lora(r=2), seed=3)
    checkpoint = open_checkpoint(str(first), adapters=[str(second)])
    named = open_checkpoint(str(base(GATED)), adapters=[str(first), str(second)])
    assert checkpoint.source == str(base(GATED))
    assert checkpoint.content_key() == named.content_key()
    edit(first, base_model_name_or_path="./nowhere")
    assert refusal(str(first)).startswith(
        f"'{first}' is a PEFT adapter of './nowhere', which cannot be opened; name its base model as --variant and "
        "the adapter as --adapter."
    )
    edit(first, base_model_name_or_path=None)
    assert "is a PEFT adapter that names no model" in refusal(str(first))
    edit(first, base_model_name_or_path=str(second))
    assert "is a PEFT adapter of an adapter" in refusal(str(first))


def test_a_saved_file_of_torch(base: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = save_adapter(base(RELU), tmp_path, lora())
    name = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    before = open_checkpoint(str(adapter)).read(name)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert torch.equal(open_checkpoint(str(adapter)).read(name), before)


def edit(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(variant: str, *adapters: object) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(variant, adapters=[str(adapter) for adapter in adapters])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_adapters_of_another_model(base: Callable[[str], Path], tmp_path: Path) -> None:
    gated = save_adapter(base(GATED), tmp_path / "gated", lora())
    said = refusal(str(base(RELU)), gated)
    assert f"the adapter '{gated}' does not fit '{base(RELU)}': 10 unknown modules: " in said
    assert "of another shape: " in said
    assert f"Name the model that it was trained on (it names '{base(GATED)}')." in said
    edit(gated, r=3)
    assert "the adapter has lora_A [4, 104], lora_B [128, 4] at rank 3" in refusal(str(base(GATED)), gated)


def test_embeddings_are_refused_by_name(base: Callable[[str], Path], tmp_path: Path) -> None:
    trained = save_adapter(base(RELU), tmp_path / "trained", lora("shared"))
    assert "changes base_model.model.shared.lora_embedding_A" in refusal(str(base(RELU)), trained)
    whole = save_adapter(base(GATED), tmp_path / "whole", lora(modules_to_save=["shared"]))
    assert "(LORA) changes shared, which is not merged here: merge it with peft" in refusal(str(base(GATED)), whole)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4), "PROMPT_TUNING, a learnt prompt"),
        (peft.VeraConfig(r=4, target_modules=["q"]), "of type VERA; LORA, LOHA, LOKR and IA3 are merged here: merge"),
        (peft.LoraConfig(target_modules=["q"], trainable_token_indices=[1]), "trainable_token_indices, which is not"),
    ],
    ids=["prompt", "vera", "tokens"],
)
def test_other_types_are_refused_by_name(
    base: Callable[[str], Path], tmp_path: Path, config: peft.PeftConfig, said: str
) -> None:
    config.base_model_name_or_path = str(base(RELU))
    config.save_pretrained(tmp_path)
    assert f"is a PEFT adapter of '{base(RELU)}'" in refusal(str(base(RELU)), tmp_path)
    assert said in refusal(str(base(RELU)), tmp_path)


def test_what_is_no_adapter(base: Callable[[str], Path], tmp_path: Path) -> None:
    assert "has no adapter_config.json" in refusal(str(base(RELU)), tmp_path)
    assert "is not a folder; --adapter takes a folder" in refusal(str(base(RELU)), tmp_path / "nothing")
    lora().save_pretrained(tmp_path)
    assert "without its weights; expected adapter_model.safetensors or" in refusal(str(base(RELU)), tmp_path)
    with pytest.raises(UserError, match="with --random-weights name its base model"):
        open_checkpoint(str(tmp_path), random_weights=0)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    assert "is truncated or damaged" in refusal(str(base(RELU)), tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    assert "it holds no weights" in refusal(str(base(RELU)), tmp_path)


def test_adapters_on_the_hub(base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert refusal(str(base(RELU)), "someone/lora") == (
        "'someone/lora' is not in the table, not a folder, not in the cache, and the hub is unreachable. Offline: pass "
        "the adapter's folder."
    )
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--lora"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = save_adapter(base(RELU), repository / "snapshots" / commit, lora())
    for name in ("someone/lora", f"someone/lora@{commit}"):
        facts = open_adapter(name).facts
        assert (facts.source, facts.revision, facts.spelled) == ("someone/lora", commit, f"someone/lora@{commit}")
    checkpoint = open_checkpoint("someone/lora")
    assert (checkpoint.source, checkpoint.revision) == (str(base(RELU)), None)
    (folder / "adapter_model.safetensors").unlink()
    assert "in the cache only without its weights" in refusal(str(base(RELU)), "someone/lora")


@pytest.fixture(scope="module")
def bundle(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter with every form of change that LORA knows, and a bundle of it."""
    exports.checkpoint(GATED)
    root = tmp_path_factory.mktemp("adapted")
    config = lora("lm_head", use_dora=True, modules_to_save=["final_layer_norm"])
    adapter = save_adapter(exports.root / GATED, root / "lora", config)
    return adapter, exports.export(str(adapter), "fp32", root / "bundle", no_verify=True)


def test_a_bundle_against_the_unmerged_model(bundle: tuple[Path, Path], exports: Exports) -> None:
    adapter, folder = bundle
    model, reference = t5edge.load(folder), unmerged(exports.root / GATED, adapter)
    ids, targets = example_ids(model.vocab_size)
    ours = torch.from_numpy(model.logits(ids.numpy(), torch.ones_like(ids).numpy(), targets.numpy()))
    theirs = logits(reference, model.vocab_size)
    assert torch.linalg.norm(ours - theirs) <= 1e-5 * torch.linalg.norm(theirs)


def test_a_bundle_is_verified_from_what_its_manifest_says(
    bundle: tuple[Path, Path], exports: Exports, tmp_path: Path
) -> None:
    adapter, folder = bundle
    manifest = Manifest.read(folder)
    (facts,) = manifest.adapters or ()
    assert (facts.source, facts.kind, facts.scales, facts.modules) == (str(adapter), "DORA", (1.5,), 46)
    assert facts.sha256 == sha256_of(adapter / "adapter_model.safetensors")
    assert facts.replaced == ("decoder.final_layer_norm", "encoder.final_layer_norm")
    assert manifest.variant == str(exports.root / GATED)
    few = checks("2 encoder", "3 logits")
    assert verify(folder, checks=few).passed
    assert verify(folder, adapter, checks=few).passed
    moved = shutil.move(adapter, tmp_path / "moved")
    try:
        with pytest.raises(UserError, match="name another place with --checkpoint or --adapter"):
            verify(folder)
        assert verify(folder, adapters=[moved], checks=few).passed
    finally:
        shutil.move(moved, adapter)
    other = save_adapter(exports.root / GATED, tmp_path / "other", lora("lm_head", use_dora=True), seed=5)
    report = verify(folder, adapters=[other], checks=few)
    assert not report.passed
    assert report.facts["checkpoint_touched"]


STREAMED = """
import sys
import psutil, torch
from t5edge.exporter.checkpoint.open import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
process = psutil.Process()
before = process.memory_info().rss
peak = 0
for name in checkpoint.names():
    if ".block." in name and ".block.0." not in name and ".block.23." not in name:
        continue
    merged = checkpoint.read(name)
    peak = max(peak, process.memory_info().rss)
    del merged
print(peak - before)
"""


@pytest.mark.slow
def test_a_model_of_11_billion_parameters_is_merged_tensor_by_tensor(tmp_path: Path) -> None:
    """A sparse file; first and last layers. The merged tensor is in memory, and the mapped one while it is made."""
    facts = find_variant("google-t5/t5-11b")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(facts.config()))
    shapes = facts.architecture.tensor_shapes()
    write_sparse(tmp_path / "base" / "model.safetensors", shapes)
    tensors = {}
    for name, shape in shapes.items():
        if ".block." in name and len(shape) == 2 and "bias" not in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.full((8, shape[1]), 0.1)
            tensors[f"{stem}.lora_B.weight"] = torch.full((shape[0], 8), 0.1)
    lora(r=8, base_model_name_or_path=str(tmp_path / "base")).save_pretrained(tmp_path / "lora")
    save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    command = [sys.executable, "-c", STREAMED, str(tmp_path / "lora")]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    largest = max(4 * math.prod(shape) for shape in shapes.values())
    assert int(found.stdout) <= 2.5 * largest, found.stdout
    print(f"{int(found.stdout) / 2**20:.0f} MiB, largest tensor {largest / 2**20:.0f} MiB")


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A float32 safetensors file of zeros that take no disk."""
    ends = list(itertools.accumulate((4 * math.prod(shape) for shape in shapes.values()), initial=0))
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": ends[index : index + 2]}
        for index, (name, shape) in enumerate(shapes.items())
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + ends[-1])
