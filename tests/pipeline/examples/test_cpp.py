"""``examples/cpp``, built with ONNX Runtime's library of this environment: its tokens are ours.

    pytest -m peer tests/pipeline/examples/test_cpp.py

The headers are those of Debian's libonnxruntime-dev and nlohmann-json3-dev, downloaded and not installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import t5edge
from support.answers import PROMPTS, our_answers
from support.bundles import Workshop
from support.debian import unpacked
from t5edge.bundle.manifest import Manifest

pytestmark = pytest.mark.peer
ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "examples" / "cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on the PATH; install cmake and a C++17 compiler")
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this onnxruntime package has no libonnxruntime.so")
    headers = unpacked(tmp_path_factory.mktemp("debian"), "libonnxruntime-dev", "nlohmann-json3-dev")
    if isinstance(headers, str):
        pytest.skip(headers)
    build = tmp_path_factory.mktemp("build")
    settings = (f"-DCMAKE_PREFIX_PATH={headers / 'usr'}", f"-DONNXRUNTIME_LIBRARY={libraries[0]}")
    for command in (["cmake", "-S", SOURCES, "-B", build, *settings], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return build / "generate"


def run(*command: str | Path, given: str) -> str:
    done = subprocess.run(list(map(str, command)), input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("precision", ["fp32", "int8-weight", "int8", "int4-weight"])
def test_the_tokens_are_ours(program: Path, demo: Workshop, precision: str, batch: int) -> None:
    folder = demo.bundle(precision)
    sources = run(sys.executable, SOURCES / "ids.py", "encode", folder, given="\n".join(PROMPTS) + "\n")
    answers = run(program, folder, "--batch", str(batch), given=sources)
    found = [[int(word) for word in line.split()] for line in answers.splitlines()]
    assert len(found) == 200
    assert found == our_answers(folder, batch)


def test_text_goes_in_and_comes_out(program: Path, demo: Workshop) -> None:
    folder = demo.bundle("fp32")
    sources = run(sys.executable, SOURCES / "ids.py", "encode", folder, given="spell 1984\nspell de 1984\n")
    texts = run(sys.executable, SOURCES / "ids.py", "decode", folder, given=run(program, folder, given=sources))
    assert texts.splitlines() == ["one thousand, nine hundred and eighty-four", "eintausendneunhundertvierundachtzig"]


def test_a_bundle_without_buffers_answers_alike(program: Path, demo: Workshop, tmp_path: Path) -> None:
    folder = demo.fresh(tmp_path / "concatenated", "fp32", "both")
    written = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    del written["ports"]["decoder_buffered"]
    (folder / "bundle.json").write_text(json.dumps(written), encoding="utf-8")
    (folder / "decoder_buffered.onnx").unlink()
    rows = t5edge.load(demo.bundle("fp32")).tokenizer.ids(PROMPTS)
    sources = "".join(f"{' '.join(map(str, row))}\n" for row in rows)
    assert run(program, folder, given=sources) == run(program, demo.bundle("fp32"), given=sources)


def test_the_cache_grows(program: Path, demo: Workshop, tmp_path: Path) -> None:
    """Without an end token the answer is longer than the first buffers, and then as we have it."""
    folder = demo.fresh(tmp_path / "endless", "fp32", "both")
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    manifest["generation"]["eos_token_id"] = [2, manifest["architecture"]["vocab_size"] - 1]
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    model = t5edge.load(folder, check=False)
    (row,) = model.tokenizer.ids(["spell 1984"])
    answer = run(program, folder, "--max-new-tokens", "150", given=" ".join(map(str, row)) + "\n")
    (ours,) = model.generate([row], max_new_tokens=150, eos_token_id=(2, model.vocab_size - 1)).tolist()
    assert [int(word) for word in answer.split()] == ours[1:]
    assert len(ours) == 151


@pytest.mark.parametrize(
    ("given", "message"), [("5 x 1\n", "line 1 is no list of ids"), ("5 1\n\n", "line 2"), ("5 99999 1\n", "line 1")]
)
def test_what_are_no_ids_is_named(program: Path, demo: Workshop, given: str, message: str) -> None:
    done = subprocess.run([program, demo.bundle("fp32")], input=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_it_does_not_know_is_refused(program: Path, demo: Workshop, tmp_path: Path) -> None:
    folder = demo.fresh(tmp_path / "changed", "fp32", "both")
    written = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    known = Manifest.read(folder)
    unknown = {"name": "cache_start", "dtype": "int64", "axes": ["batch"]}
    decoder = written["ports"]["decoder_buffered"]
    changes = {
        "later format": {"format_version": 2},
        "num_beams 4": {"generation": {**known.generation, "num_beams": 4}},
        "cache_start": {"ports": {**written["ports"], "decoder_buffered": {"inputs": [unknown, *decoder["inputs"]]}}},
        "not what was exported": {"files": {**written["files"], "encoder.onnx": {"bytes": 1}}},
        "encoder alone": {"task": "encode"},
        "16 bits": {"precision": {**written["precision"], "compute": "float16"}},
    }
    for message, change in changes.items():
        (folder / "bundle.json").write_text(json.dumps({**written, **change}), encoding="utf-8")
        done = subprocess.run([program, folder], input="5 1\n", capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
