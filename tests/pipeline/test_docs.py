"""The blocks of the documentation that say nothing of what they need: run, page by page, with t5-demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import t5edge
from support.docs import PROGRAMS, ROOT, Block, blocks, config_file, pages

RUN = {page.relative_to(ROOT).as_posix(): [block for block in blocks(page) if block.needs is None] for page in pages()}
BUNDLES = ("BUNDLE", "OTHER", "SMALL_BUNDLE", "small-bundle", "build/t5", "build/encoder")
"""What pages call a bundle that is at hand."""
CHECKPOINT = "my-flan-t5"
TEXTS = ["spell 1984", "spell 7"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """t5-demo as a user exports it: quantized, and proven."""
    out = tmp_path_factory.mktemp("docs") / "bundle"
    command = ["export", "--variant", "t5-demo", "--precision", "int8", "--target", "onnxruntime", "--out", str(out)]
    subprocess.run(
        [Path(sys.executable).with_name("t5edge"), *command], check=True
    )  # judges on all texts, as a user does
    return out


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's commands run: bundles, a checkpoint and prompts under the names that pages use."""
    for name in BUNDLES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copytree(bundle, tmp_path / name)
    shutil.copytree(ROOT / "exporter" / "data" / "t5-demo", tmp_path / CHECKPOINT)
    (tmp_path / "baseline").mkdir()
    shutil.copy(tmp_path / "BUNDLE" / "parity.json", tmp_path / "baseline")
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "export.toml").write_text(config_file())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def names() -> dict[str, Any]:
    """What pages take as given in a program."""
    model = t5edge.load("BUNDLE")
    input_ids, attention_mask = model.tokenizer.encode(TEXTS)
    target_ids = model.tokenizer.encode(["seven", "nine"])[0]
    ids = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": target_ids}
    return {**ids, "target_ids": target_ids, "t5edge": t5edge, "model": model, "lines": TEXTS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [name for name, found in RUN.items() if found])
def test_the_blocks_of_a_page_run_in_their_order(folder: Path, page: str) -> None:
    given = names()
    for block in RUN[page]:
        run(block, given)


def run(block: Block, given: dict[str, Any]) -> None:
    if block.language in PROGRAMS:
        exec(compile(block.text, block.place, "exec"), given)
        return
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.place}\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
