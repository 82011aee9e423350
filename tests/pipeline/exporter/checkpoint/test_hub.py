"""The hub without the hub: a hand-made cache for offline use, and a local server that speaks its protocol."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as hub_constants
import pytest

from support.sentences import save_sentence_model
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.hub import Repository
from t5edge.exporter.checkpoint.open import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "google/t5-efficient-tiny"
TINY = find_tiny_model("t5-tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that huggingface_hub uses."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    return cache


def fill_cache(cache: Path, name: str = NAME, commit: str = COMMIT) -> Path:
    """The layout huggingface_hub keeps: a snapshot per commit, and the commit of the main branch."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return save_tiny_model(TINY, repository / "snapshots" / commit, seed=1)


def refusal(name: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cached_checkpoint_opens_offline(offline: Path) -> None:
    folder = fill_cache(offline)
    checkpoint = open_checkpoint("t5-efficient-tiny")
    assert (checkpoint.source, checkpoint.folder, checkpoint.revision) == (NAME, folder, COMMIT)
    assert checkpoint.architecture == TINY.architecture
    assert open_checkpoint(NAME, revision=COMMIT).folder == folder
    assert checkpoint.differences[0] == "vocab_size: table 32128, checkpoint 131"


def test_a_subfolder_of_a_cached_repository_opens_offline(offline: Path) -> None:
    folder = fill_cache(offline, "someone/pipeline")
    inside = Path(shutil.copytree(folder, folder / "text_encoder_2"))
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer_2").mkdir()
    (folder / "tokenizer_2" / "spiece.model").write_bytes(b"")
    checkpoint = open_checkpoint("someone/pipeline", subfolder="text_encoder_2")
    assert (checkpoint.source, checkpoint.folder, checkpoint.revision) == ("someone/pipeline", inside, COMMIT)
    assert checkpoint.tokenizer_folder == folder / "tokenizer_2"
    asked = Repository("someone/pipeline", subfolder="text_encoder_2").small_files
    assert {"text_encoder_2/config.json", "tokenizer_2/spiece.model"} <= set(asked)
    assert "in the cache only without its weights" in refusal("someone/pipeline")


def test_cached_checkpoint_opens_when_the_network_is_down(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    folder = fill_cache(cache)
    assert open_checkpoint(NAME).folder == folder
    assert open_checkpoint(NAME, revision=COMMIT).folder == folder
    assert "in the cache only without its weights, and the hub is unreachable" in without_weights(folder)


def test_cache_that_lacks_the_weights(offline: Path) -> None:
    assert without_weights(fill_cache(offline)) == (
        f"'{NAME}' is not a folder, in the cache only without its weights, and the hub is unreachable. "
        "Offline: pass a checkpoint folder, or --random-weights SEED for a structural export."
    )


def without_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return refusal(NAME)


def test_empty_cache_offline(offline: Path) -> None:
    help_text = "Offline: pass a checkpoint folder, or --random-weights SEED for a structural export."
    assert refusal("t5-efficient-tiny") == (
        f"'{NAME}' is not a folder, not in the cache, and the hub is unreachable. {help_text}"
    )
    assert refusal("google/t5-efficent-tiny") == (
        "'google/t5-efficent-tiny' is not in the table, not a folder, not in the cache, and the hub is "
        f"unreachable. Did you mean '{NAME}'? {help_text}"
    )
    assert refusal("someone/their-t5", random_weights=0).startswith(
        "'someone/their-t5' is not in the table, not a folder, not in the cache, and the hub is unreachable."
    )
    assert "no hub id of the form 'organisation/name'" in refusal("some one/their t5")


def test_random_weights_need_no_network(offline: Path) -> None:
    assert open_checkpoint(NAME, random_weights=1).architecture.d_model == 256


def test_offline_switch_of_the_environment(tmp_path: Path) -> None:
    fill_cache(tmp_path)
    code = (
        "from t5edge.exporter.checkpoint.open import open_checkpoint; import sys\n"
        f"print(open_checkpoint('{NAME}').revision, 'torch' in sys.modules)\n"
        "open_checkpoint('google/t5-efficient-mini')"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == f"{COMMIT} False\n"
    assert "UserError: 'google/t5-efficient-mini' is not a folder, not in the cache" in done.stderr


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FakeHub(ThreadingHTTPServer):
    """One repository, served the way the hub does: its API for commit and tree, and its files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.folder = folder
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloaded(self) -> set[str]:
        """Names of the files whose content was sent."""
        return {inside(path) for path in self.requests if path.startswith("GET ") and "/resolve/" in path}


class FakeHubHandler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.refusal is not None:
            status, code = self.server.refusal
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
        elif "/resolve/" in path:
            self._send_file(self.server.folder / inside(path))
        elif "/tree/" in path:
            self._send(200, json.dumps([self._entry(name) for name in self._names()]).encode())
        else:
            siblings = [{"rfilename": name} for name in self._names()]
            self._send(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())

    def _names(self) -> list[str]:
        files = (path for path in self.server.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.server.folder).as_posix() for path in files)

    def _entry(self, name: str) -> dict[str, object]:
        content = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}

    def _send_file(self, file: Path) -> None:
        if not file.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        self._send(200, content, {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def blob_id(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def inside(path: str) -> str:
    """The file's name in the repository: what follows the commit."""
    return path.partition("/resolve/")[2].partition("/")[2]


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = tmp_path / "served"
    folder.mkdir()
    server = FakeHub(folder)
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
    monkeypatch.setattr(hub_constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        hub_constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield server
    server.shutdown()
    server.server_close()


def test_download_takes_what_is_needed_and_prefers_safetensors(hub: FakeHub) -> None:
    save_tiny_model(TINY, hub.folder, 1)
    save_tiny_model(TINY, hub.folder, 1, bin=True)
    for name in ("tf_model.h5", "README.md", "flax_model.msgpack"):
        (hub.folder / name).write_text("not needed")
    (hub.folder / "tokenizer_config.json").write_text("{}")
    checkpoint = open_checkpoint(NAME)
    assert checkpoint.revision == COMMIT
    assert hub.downloaded() == {"config.json", "tokenizer_config.json", "model.safetensors"}
    assert checkpoint.architecture == TINY.architecture


def test_download_of_shards_follows_the_index(hub: FakeHub) -> None:
    save_tiny_model(TINY, hub.folder, 1, "transformers4", sharded=True, bin=True)
    (hub.folder / "pytorch_model-00009-of-00009.bin").write_text("left over")
    assert open_checkpoint(NAME).architecture == TINY.architecture
    shards = {f"pytorch_model-0000{part}-of-00003.bin" for part in (1, 2, 3)}
    assert hub.downloaded() == {"config.json", "pytorch_model.bin.index.json", *shards}


def test_second_opening_downloads_nothing_and_works_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_model(TINY, hub.folder, 1)
    first = open_checkpoint(NAME)
    hub.requests.clear()
    assert open_checkpoint(NAME).content_key() == first.content_key()
    assert hub.downloaded() == set()
    hub.requests.clear()
    assert open_checkpoint(NAME, revision=COMMIT).folder == first.folder
    assert hub.requests == []
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint(NAME).revision == COMMIT


def test_random_weights_of_an_unlisted_repository_need_its_config_only(hub: FakeHub) -> None:
    save_tiny_model(TINY, hub.folder, 1)
    checkpoint = open_checkpoint("someone/their-t5", random_weights=3)
    assert checkpoint.architecture == TINY.architecture
    assert checkpoint.random
    assert hub.downloaded() == {"config.json"}


def test_repository_without_weights(hub: FakeHub) -> None:
    (hub.folder / "config.json").write_text("{}")
    assert refusal(NAME).startswith(f"'{NAME}' holds no weights for PyTorch; expected one of model.safetensors")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (403, "GatedRepo"),
            f"'{NAME}' is gated: accept its terms on its hub page and log in with 'hf auth login'",
        ),
        (
            (404, "RepoNotFound"),
            f"'{NAME}' is not on the hub, or is private and needs 'hf auth login'. Check the name",
        ),
        ((404, "RevisionNotFound"), f"'{NAME}' has no revision 'v9'. Name a branch, tag or commit"),
        ((501, "Down"), f"'{NAME}' is not a folder, not in the cache, and the hub is unreachable."),
    ],
)
def test_refusals_of_the_hub(hub: FakeHub, answer: tuple[int, str], message: str) -> None:
    hub.refusal = answer
    assert refusal(NAME, revision="v9").startswith(message)


def test_unknown_repository_proposes_the_nearest(hub: FakeHub) -> None:
    hub.refusal = (404, "RepoNotFound")
    assert refusal("google/t5-efficent-tiny").endswith(f"Did you mean '{NAME}'?")


def test_download_of_an_adapter_takes_its_two_files(hub: FakeHub) -> None:
    (hub.folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    for name in ("adapter_model.safetensors", "training_args.bin", "README.md"):
        (hub.folder / name).write_text("not read here")
    assert "adapter_model.safetensors (13 bytes) is truncated or damaged" in refusal("someone/lora")
    assert hub.downloaded() == {"adapter_config.json", "adapter_model.safetensors"}


def test_download_of_a_sentence_model_takes_its_modules(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sentence_model(hub.folder, "t5-tiny")
    (hub.folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"")  # hubs often keep both; safetensors come first
    (hub.folder / "onnx").mkdir()
    for name in ("README.md", "onnx/model.onnx"):
        (hub.folder / name).write_text("not needed")
    first = open_checkpoint("someone/sentence-t5")
    assert first.sentence is not None
    assert {"2_Dense/model.safetensors", "1_Pooling/config.json", "modules.json"} <= hub.downloaded()
    assert not {"README.md", "onnx/model.onnx"} & hub.downloaded()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    again = open_checkpoint("someone/sentence-t5", revision=COMMIT)
    assert again.content_key() == first.content_key()


def plan(*more: str, variant: str = NAME) -> tuple[int, dict[str, Any]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["export", "--variant", variant, "--out", "never-written", "--dry-run", "--json", *more])
    return code, json.loads(out.getvalue() or "{}")


def test_a_dry_run_downloads_no_weights_and_says_how_many_there_are(hub: FakeHub) -> None:
    save_tiny_model(TINY, hub.folder, 1)
    code, found = plan(variant="someone/their-t5")
    assert (code, found["download"]) == (0, (hub.folder / "model.safetensors").stat().st_size)
    assert (found["source"], found["revision"]) == ("someone/their-t5 on the hub", COMMIT)
    assert found["parameters"] == TINY.architecture.parameters
    assert "model.safetensors" not in hub.downloaded()
    open_checkpoint("someone/their-t5")
    assert plan(variant="someone/their-t5")[1]["download"] == 0


def test_a_dry_run_counts_the_shards(hub: FakeHub) -> None:
    save_tiny_model(TINY, hub.folder, 1, "transformers4", sharded=True, bin=True)
    shards = sum(path.stat().st_size for path in hub.folder.glob("pytorch_model-*.bin"))
    assert plan(variant="someone/their-t5")[1]["download"] == shards


@pytest.mark.parametrize("answer", [(403, "GatedRepo"), (404, "RepoNotFound"), (501, "Down")])
def test_a_dry_run_is_refused_by_the_hub_as_the_export_is(
    hub: FakeHub, answer: tuple[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refusal = answer
    assert plan()[0] == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"t5edge export: {refusal(NAME)}"


def test_a_dry_run_of_a_part_that_is_not_cached_says_so(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(TINY, hub.folder / "text_encoder_2", 1)
    assert plan("--subfolder", "text_encoder_2", variant="someone/pipeline")[0] == 2
    assert "is not in the cache, and --dry-run downloads no weights" in capsys.readouterr().err
