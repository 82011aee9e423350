"""``examples/browser`` in headless Chromium: its tokens are ours.

    pytest -m peer tests/pipeline/examples/test_browser.py

Needs npm and Chromium (Debian's ``chromium``) on the PATH; npm packages are installed into a temporary folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import t5edge
from support import unigram
from support.answers import PROMPTS, our_answers
from support.bundles import Workshop
from support.exports import Exports

pytestmark = [pytest.mark.peer, pytest.mark.timeout(900)]
PAGE = Path(__file__).parents[3] / "examples" / "browser"
DRIVER = Path(__file__).parents[2] / "support" / "browser_driver.mjs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
INSTALL = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", "puppeteer-core")


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: pytest's output is for failures."""


@dataclass(frozen=True)
class Site:
    """The page with its packages in ``folder``, served at ``url``; bundles are links in it."""

    folder: Path
    url: str
    browser: str

    def ask(self, bundle: Path, batches: list[list[str]], typed: str = "spell 7") -> dict[str, Any]:
        """What the page says: its state, the answers to ``batches``, and what it shows for a typed text."""
        link = self.folder / bundle.name
        if not link.exists():
            link.symlink_to(bundle)
        command = ["node", DRIVER, self.folder, self.browser, f"{self.url}/?bundle={bundle.name}"]
        request = json.dumps({"batches": batches, "typed": typed})
        done = subprocess.run(
            list(map(str, command)), input=request, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or shutil.which("npm") is None:
        pytest.skip("npm and Chromium are needed on the PATH: apt install npm chromium")
    folder = tmp_path_factory.mktemp("site")
    for file in PAGE.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    done = subprocess.run(INSTALL, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the page's packages: {done.stderr[-300:]}")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}", browser)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("precision", "batch"), [("fp32", 1), ("fp32", 16), ("int8-weight", 1), ("int8", 16), ("int4-weight", 16)]
)
def test_the_tokens_are_ours(site: Site, demo: Workshop, precision: str, batch: int) -> None:
    folder = demo.bundle(precision)
    batches = [PROMPTS[first : first + batch] for first in range(0, len(PROMPTS), batch)]
    found = site.ask(folder, batches)
    assert found["state"].startswith(f"t5-demo in {precision}, loaded in")
    assert [row["source"] for row in found["rows"]] == t5edge.load(folder).tokenizer.ids(PROMPTS)
    assert [row["tokens"] for row in found["rows"]] == our_answers(folder, batch)
    assert len(found["rows"]) == 200


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weight"])
def test_the_tokens_of_portable_graphs_are_ours(site: Site, demo: Workshop, precision: str) -> None:
    folder = demo.portable(precision)
    found = site.ask(folder, [PROMPTS[first : first + 16] for first in range(0, len(PROMPTS), 16)])
    assert [row["tokens"] for row in found["rows"]] == our_answers(folder, 16)


def test_texts_of_sentencepiece_are_cut_as_ours(site: Site, exports: Exports, tmp_path: Path) -> None:
    """A Unigram vocabulary with byte fallback, as mT5's, and characters that it does not have."""
    saved = unigram.save_checkpoint(tmp_path / "checkpoint")
    folder = exports.export(str(saved), "fp32", tmp_path / "unigram", no_verify=True)
    texts = [text for script in unigram.ALPHABETS for text in unigram.sentences(script, 20, seed=7)]
    texts += ["CAPS and Straße", "日本語 😀 done", "ﬁne ½ ①", "<extra_id_0> x <unk>", "  two  spaces ", "e\u0301"]
    found = site.ask(folder, [texts])
    tokenizer = t5edge.load(folder).tokenizer
    ids = tokenizer.ids(texts)
    assert [row["source"] for row in found["rows"]] == ids
    assert [row["text"] for row in found["rows"]] == [tokenizer.text(row["tokens"]) for row in found["rows"]]


def test_a_person_sees_answer_and_tokens(site: Site, demo: Workshop) -> None:
    found = site.ask(demo.bundle("fp32"), [["spell 7"]], typed="spell de 1984")
    answer, source, tokens = found["shown"]
    assert answer == "eintausendneunhundertvierundachtzig"
    assert source.endswith(" 1")
    assert tokens.endswith(" 1")
    assert found["rows"][0]["text"] == "seven"


def test_a_changed_file_is_named(site: Site, demo: Workshop, tmp_path: Path) -> None:
    folder = demo.fresh(tmp_path / "changed", "fp32", "both")
    with (folder / "encoder.onnx").open("r+b") as file:
        file.write(b"\x00")
    assert "encoder.onnx is not what was exported" in site.ask(folder, [["spell 7"]])["state"]


def test_what_the_page_does_not_know_is_refused(site: Site, demo: Workshop) -> None:
    assert "16 bits" in site.ask(demo.bundle("fp16"), [["spell 7"]])["state"]
