"""Learnt prompts on one bundle against peft: virtual tokens and prefixes, one by one, mixed in a batch, and none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.adapters import base_model
from support.encoders import example
from support.exports import Exports, checks
from support.host_device import FORMS, open_on_host
from support.prompts import peft_logits, peft_tokens, prompt_config, prompted, save_prompt
from support.shared import once, shared_folder
from t5edge import pipeline
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import PASS
from t5edge.cli import main
from t5edge.errors import UserError
from t5edge.exporter.family.variants import DEMO_FOLDER
from t5edge.parity.ladder import verify
from t5edge.parity.measures import relative_error
from t5edge.runtime.generation.drafts import Drafting
from t5edge.runtime.generation.refill import Prompt as RowPrompt
from t5edge.runtime.generation.refill import stream
from t5edge.runtime.model import BundleModel, load

RELU, GATED, PER_LAYER_BIAS = "t5-tiny", "v1.1-tiny", "umt5-tiny"
KINDS = {"five": ("prompt", 5), "three": ("p", 3), "past": ("prefix", 4), "longer": ("prefix", 7)}
"""Of each prompt: its kind, and how many virtual tokens it has."""


@dataclass(frozen=True)
class Prompted:
    """A bundle of a tiny model with prompts, and the folders of both."""

    base: Path
    prompts: Mapping[str, Path]
    bundle: Path

    @property
    def model(self) -> BundleModel:
        return load(self.bundle)

    def peft(self, name: str) -> object:
        return prompted(self.base, self.prompts[name])


Make = Callable[..., Prompted]


@pytest.fixture(scope="session")
def make(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A verified bundle with the prompts of some names, exported once."""
    root = shared_folder(tmp_path_factory, "prompts")

    def prompted_bundle(tiny: str, precision: str = "fp32", *names: str) -> Prompted:
        exports.checkpoint(tiny)
        base, folders = exports.root / tiny, {}
        for seed, name in enumerate(names or KINDS):
            kind, tokens = KINDS[name]
            make_prompt = lambda out, kind=kind, tokens=tokens, seed=seed: save_prompt(  # noqa: E731
                base, out, prompt_config(kind, base, tokens), seed
            )
            folders[name] = once(root / f"{tiny}-{name}", make_prompt)

        def export(out: Path) -> None:
            given = tuple(f"{name}={folder}" for name, folder in folders.items())
            options = {"target": ("onnxruntime",), "cache": "both", "max_target_length": 64}
            assert pipeline.export(str(base), precision, out=out, prompt=given, **options).passed

        return Prompted(base, folders, once(root / "-".join([tiny, precision, *names]), export))

    return prompted_bundle


def targets(vocab_size: int, rows: int = 3) -> np.ndarray:
    """Decoder ids int64 [rows, 7] behind the start token."""
    found = np.random.default_rng(1).integers(3, vocab_size, (rows, 7))
    found[:, 0] = 0
    return found


def assert_as_peft(made: Prompted, name: str) -> None:
    """Logits in both ways, greedy tokens, beams."""
    model, theirs = made.model, made.peft(name)
    ids, mask = example(model.vocab_size)
    fed = targets(model.vocab_size)
    expected = peft_logits(theirs, ids, mask, fed)
    for logits in (model.logits, model.logits_uncached):
        assert relative_error(logits(ids, mask, fed, prompt=name), expected) < 1e-5
    for beams in (1, 3):
        settings = {"max_new_tokens": 10, "num_beams": beams}
        found = model.generate(ids, mask, prompt=name, **settings)
        assert np.array_equal(found, peft_tokens(theirs, ids, mask, **settings))


@pytest.mark.parametrize("name", KINDS)
def test_logits_tokens_and_beams_are_those_of_peft(make: Make, name: str) -> None:
    assert_as_peft(make(RELU), name)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [GATED, PER_LAYER_BIAS])
def test_so_they_are_in_other_structures(make: Make, tiny: str) -> None:
    for name in KINDS:
        assert_as_peft(make(tiny), name)


def test_a_batch_mixes_prompts_of_unlike_kind_and_length(make: Make) -> None:
    made = make(RELU)
    model, names = made.model, [*KINDS, "none"]
    ids, mask = (np.tile(array, (2, 1))[: len(names)] for array in example(model.vocab_size))
    fed = targets(model.vocab_size, len(names))
    models = {name: made.peft(name) for name in KINDS} | {"none": base_model(made.base)}
    rows = [(models[name], ids[[row]], mask[[row]], fed[[row]]) for row, name in enumerate(names)]
    expected = np.concatenate([peft_logits(*row) for row in rows])
    assert relative_error(model.logits(ids, mask, fed, prompt=names), expected) < 1e-5
    for beams in (1, 2):
        found = model.generate(ids, mask, prompt=names, max_new_tokens=8, num_beams=beams)
        alone = [peft_tokens(*row[:3], max_new_tokens=8, num_beams=beams)[0] for row in rows]
        assert all(np.array_equal(ours[: len(theirs)], theirs) for ours, theirs in zip(found, alone, strict=True))
    scored = model.score(ids, mask, fed[:, 1:], prompt=names).token_scores
    exact = expected - np.log(np.exp(expected).sum(-1, keepdims=True))
    assert np.allclose(scored, np.take_along_axis(exact[:, :-1], fed[:, 1:, None], 2)[..., 0], atol=1e-5)


@pytest.mark.parametrize("buffers", [True, False])
def test_drafted_tokens_go_back_behind_a_prefix(make: Make, buffers: bool) -> None:
    model = load(make(RELU).bundle, buffers=buffers)
    ids, mask = example(model.vocab_size)
    for names in (["past", "longer", "none"], "longer"):
        settings = {"max_new_tokens": 25, "eos_token_id": None, "prompt": names}
        expected = model.generate(ids, mask, **settings)
        assert np.array_equal(model.generate(ids, mask, prompt_lookup_num_tokens=4, **settings), expected)


def test_a_row_that_has_ended_begins_anew_with_another_prefix(make: Make) -> None:
    model = make(RELU).model
    names, random = [*KINDS, "none", "longer", "past", "five"], np.random.default_rng(3)
    texts = [random.integers(3, model.vocab_size, (1, length)) for length in (3, 9, 4, 12, 5, 7, 2)]
    options = model.options(max_new_tokens=9)
    sources = [model.source(ids, None, name)[0][0].tolist() for ids, name in zip(texts, names, strict=False)]
    prompts = [RowPrompt(number, ids) for number, ids in enumerate(sources)]
    found = dict(stream(model.step_model, prompts, options, 2, Drafting(model.pace)))
    for number, (ids, name) in enumerate(zip(texts, names, strict=False)):
        expected = model.generate(ids, None, prompt=name, max_new_tokens=9)[0]
        assert np.array_equal(found[number].sequences[0], expected)


@pytest.mark.parametrize("form", FORMS)
def test_engines_begin_their_caches_with_prefixes(make: Make, form: str) -> None:
    """On a device of host memory: logits, tokens, and beams that change places."""
    made = make(RELU)
    model, names = made.model, ["past", "five", "longer"]
    on_device = BundleModel(made.bundle, model.manifest, open_on_host(made.bundle, form))
    ids, mask = example(model.vocab_size)
    fed = targets(model.vocab_size)
    expected = model.logits(ids, mask, fed, prompt=names)
    assert relative_error(on_device.logits(ids, mask, fed, prompt=names), expected) < 1e-5
    for beams in (1, 2):
        settings = {"max_new_tokens": 9, "num_beams": beams, "prompt": names}
        found = on_device.generate(ids, mask, **settings)
        assert np.array_equal(found, model.generate(ids, mask, **settings))
    with pytest.raises(UserError, match="these engines take up to 64"):
        on_device.generate(ids, mask, prompt="longer", max_new_tokens=60, eos_token_id=None)


@pytest.mark.slow
def test_engines_are_built(make: Make, tmp_path: Path, rtx: object, no_gpu: None) -> None:
    from t5edge.engines.build import build_engines

    folder = Path(shutil.copytree(make(RELU, "fp16", "past", "five").bundle, tmp_path / "b"))
    (entry,) = build_engines(folder, "tensorrt-rtx", ["8.6"]).values()
    assert {"encoder", "decoder"} <= set(entry.graphs)


def test_ports_and_the_manifest_say_what_ids_mean(make: Make) -> None:
    made = make(RELU)
    manifest = Manifest.read(made.bundle)
    size = manifest.architecture.vocab_size
    found = {prompt.name: (prompt.ids, prompt.kind) for prompt in manifest.prompts or ()}
    assert found == {
        "five": (tuple(range(size, size + 5)), "PROMPT_TUNING"),
        "three": (tuple(range(size + 5, size + 8)), "P_TUNING"),
        "past": ((-1,), "PREFIX_TUNING"),
        "longer": ((-2,), "PREFIX_TUNING"),
    }
    graph = onnx.load(made.bundle / "decoder.onnx", load_external_data=False).graph
    assert "cache_start" in [value.name for value in graph.input]
    by_ids, given = made.model, np.array([[size, size + 1, size + 2, size + 3, size + 4, 9, 1]])
    fed = targets(size, 1)
    assert np.array_equal(by_ids.logits(given, None, fed), by_ids.logits([[9, 1]], None, fed, prompt="five"))
    assert np.array_equal(by_ids.logits([[-2, 9, 1]], None, fed), by_ids.logits([[9, 1]], None, fed, prompt="longer"))


def test_virtual_tokens_alone_change_no_port(make: Make, exports: Exports) -> None:
    made = make(RELU, "fp32", "five")
    plain, own = (Manifest.read(folder) for folder in (exports.bundle(RELU), made.bundle))
    assert {name: own.ports[name] for name in plain.ports} == plain.ports
    model = made.model
    ids, mask = example(model.vocab_size)
    fed = targets(model.vocab_size)
    assert np.array_equal(model.logits(ids, mask, fed), model.logits(ids, mask, fed, prompt="five")), "the only one"
    without = load(exports.bundle(RELU)).logits(ids, mask, fed)
    assert np.array_equal(model.logits(ids, mask, fed, prompt="none"), without)


def test_what_names_no_prompt_is_refused_in_one_line(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(RELU)
    for chosen, said in {
        None: "has several prompts; name one of five, three, past, longer, or 'none'",
        "six": "has no prompt 'six'; it has five, three, past, longer",
        ("five", "past"): "2 prompts for 1 sources",
    }.items():
        with pytest.raises(UserError, match=said):
            made.model.generate([[5, 1]], prompt=chosen)
    with pytest.raises(UserError, match="hold ids of prompts already"):
        made.model.generate([[-1, 5, 1]], prompt="five")
    assert main(["generate", str(made.bundle), "--prompt", "five", "a"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert main(["inspect", str(made.bundle)]) == 0
    assert "prompt longer: PREFIX_TUNING of 7 virtual tokens, id -2" in " ".join(capsys.readouterr().out.split())


def test_the_ladder_ran_with_prompts_in_front(make: Make) -> None:
    report = json.loads((make(RELU).bundle / "parity.json").read_text())
    verdicts = {entry["name"]: entry["verdict"] for entry in report["rungs"]}
    for name in ("weights", "graphs", "2 encoder", "3 logits", "3 texts", "4 cache", "5 padding", "6 lengths"):
        assert verdicts[name] == PASS
    assert {entry["verdict"] for entry in report["rungs"] if entry["name"] == "7 generation"} == {PASS}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-weight", "int4-weight"])
@pytest.mark.parametrize("names", [("five", "three"), ("past", "longer")], ids=["virtual", "prefix"])
def test_every_precision_passes(make: Make, precision: str, names: tuple[str, ...]) -> None:
    made = make(RELU, precision, *names)
    model = made.model
    ids, mask = example(model.vocab_size)
    fed = targets(model.vocab_size)
    for name in names:
        error = relative_error(model.logits(ids, mask, fed, prompt=name), peft_logits(made.peft(name), ids, mask, fed))
        assert error < 0.2


def test_another_prompt_fails_the_ladder(make: Make) -> None:
    """A bundle against the same model with two of its prompts in each other's place."""
    made = make(RELU)
    swapped = {**made.prompts, "past": made.prompts["longer"], "longer": made.prompts["past"]}
    with pytest.raises(UserError, match="prefix_lengths: bundle"):
        verify(made.bundle, prompts=[f"{name}={folder}" for name, folder in swapped.items()])
    moved = save_prompt(made.base, made.base.parent / "moved", prompt_config("prompt", made.base, 5), seed=7)
    others = {**made.prompts, "five": moved}
    report = verify(
        made.bundle, prompts=[f"{name}={folder}" for name, folder in others.items()], checks=checks("weights", "2")
    )
    assert {result.name for result in report.failures} >= {"weights", "2 encoder"}


@pytest.mark.slow
def test_layer_by_layer_it_passes_too(make: Make) -> None:
    report = verify(make(RELU).bundle, blockwise=True)
    assert not report.failures
    assert {"3 logits", "3 texts", "decoder stem", "encoder stem"} <= {result.name for result in report.results}


@pytest.fixture(scope="session")
def demo_prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompted:
    """The demo model, which has a tokenizer and a task, with two prompts; not verified."""
    root, folders = shared_folder(tmp_path_factory, "demo-prompts"), dict[str, Path]()
    for name, kind in {"front": "prompt", "past": "prefix"}.items():
        config = prompt_config(kind, DEMO_FOLDER, 4)
        folders[name] = once(root / name, lambda out, config=config: save_prompt(DEMO_FOLDER, out, config, scale=0.1))

    def export(out: Path) -> None:
        given = tuple(f"{name}={folder}" for name, folder in folders.items())
        pipeline.export("t5-demo", "fp32", out=out, target=("onnxruntime",), prompt=given, no_verify=True)

    return Prompted(DEMO_FOLDER, folders, once(root / "bundle", export))


TEXTS = ["spell 7", "spell 1984", "add 1 and 2"]


def test_texts_with_prompts_by_name(demo_prompts: Prompted, capsys: pytest.CaptureFixture[str]) -> None:
    model, names = demo_prompts.model, ["past", "none", "front"]
    settings = {"max_new_tokens": 12}
    alone = [model.generate_text([text], prompt=name, **settings)[0] for text, name in zip(TEXTS, names, strict=True)]
    assert model.generate_text(TEXTS, prompt=names, **settings) == alone
    assert alone[1] == load(demo_prompts.bundle).generate_text(["spell 1984"], prompt="none", **settings)[0]
    for name in ("past", "front"):
        answers = model.generate_text(TEXTS, prompt=name, **settings)
        assert [text for (text,) in model.stream_text(TEXTS, prompt=name, batch_size=2, **settings)] == answers
        scores = model.score_text(TEXTS, answers, prompt=name)
        ids, mask = model.tokenizer.encode(TEXTS)
        assert np.allclose(
            scores.token_scores, model.score(ids, mask, scores.target_ids, prompt=name).token_scores, atol=1e-5
        )
    capsys.readouterr()
    assert main(["generate", str(demo_prompts.bundle), "--prompt", "past", "--max-new-tokens", "12", TEXTS[0]]) == 0
    assert capsys.readouterr().out.strip() == alone[0]
    assert main(["generate", str(demo_prompts.bundle), TEXTS[0]]) == 2
    assert "name one of front, past, or 'none'" in capsys.readouterr().err
    with pytest.raises(UserError, match="takes no assistant"):
        model.generate_text(TEXTS, prompt="past", assistant=model)


def test_the_task_is_judged_with_prompts(demo_prompts: Prompted) -> None:
    (result,) = verify(demo_prompts.bundle, checks=checks("8")).results[1:]
    assert (result.name, result.verdict) == ("8 task", PASS)
