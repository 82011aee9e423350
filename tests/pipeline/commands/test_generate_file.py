"""``generate --file``: a file of prompts to a file of answers, killed and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.bundles import Workshop
from t5edge.cli import main
from t5edge.runtime.model import load


def test_answers_are_those_of_the_same_prompts_alone(
    demo: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = ["spell 1984", "", "read de zwölf", "spell 12"], tmp_path / "out.jsonl"
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", "utf-8")
    bundle = demo.bundle("fp32")
    arguments = [
        "generate",
        str(bundle),
        "--file",
        str(tmp_path / "in.txt"),
        "--out",
        str(out),
        "--max-new-tokens",
        "30",
    ]
    assert main([*arguments, "--prompt-lookup-num-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "answers": 4, "resumed": 0}
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["source"] for row in rows] == texts
    model = load(bundle)
    assert [row["target"] for row in rows] == [model.generate_text([text], max_new_tokens=30)[0] for text in texts]
    assert main(arguments) == 2
    assert "exists; pass --force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_a_killed_run_goes_on_with_nothing_lost_or_doubled(demo: Workshop, tmp_path: Path) -> None:
    texts, out = [f"spell {number}" for number in range(1500, 3000)], tmp_path / "out.jsonl"
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    command = [sys.executable, "-m", "t5edge.cli", "generate", str(demo.bundle("fp32"))]
    command += ["--file", str(tmp_path / "in.txt"), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    partial, deadline = tmp_path / "out.jsonl.partial", time.monotonic() + 60
    while time.monotonic() < deadline and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert 0 < json.loads(done.stdout)["resumed"] < len(texts)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(len(texts)))
    assert [row["source"] for row in rows] == texts


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "x"], "--out goes with --file"),
        (["--file", "missing"], "--file needs --out"),
        (["--file", "missing", "--out", "x"], "'missing' cannot be read"),
        (["--file", "missing", "--out", "x", "a prompt"], "not both"),
        (["--file", "missing", "--out", "x", "--assistant", "b"], "takes no --assistant"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    demo: Workshop, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(demo.bundle("fp32")), *extra]) == 2
    assert message in capsys.readouterr().err


def test_an_assistant_is_a_bundle(demo: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(demo.bundle("fp32")), "spell 1984", "--assistant", str(demo.bundle("int8"))]
    assert main([*arguments, "--num-assistant-tokens", "4"]) == 0
    assert capsys.readouterr().out == "one thousand, nine hundred and eighty-four\n"
