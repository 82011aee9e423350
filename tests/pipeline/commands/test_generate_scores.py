"""``generate --scores``: what ``generate(..., return_scores=True)`` gives, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bundles import Workshop
from t5edge.cli import main
from t5edge.runtime.model import BundleModel, load
from t5edge.tools.answers import Answers

TEXTS = ["spell 1984", "spell 7", "read de zwölf"]
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drafted": {"prompt_lookup_num_tokens": 4},
    "sampled": {"do_sample": True, "temperature": 2.0, "top_k": 7},
    "beams": {"num_beams": 3, "length_penalty": 0.5},
}


def flags(settings: dict[str, Any]) -> list[str]:
    names = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    return [word for name, value in names.items() for word in ([name] if value is True else [name, str(value)])]


def expected(model: BundleModel, text: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The line of a text, from its ids."""
    ids, mask = model.tokenizer.encode([text])
    found = model.generate(ids, mask, return_scores=True, normalize_logits=True, **settings)
    size = int(np.flatnonzero(found.sequences[0, 1:] == 1)[0]) + 1
    scores, tokens = found.transition_scores[0, :size], found.sequences[0, 1 : size + 1].tolist()
    names = {token: piece for piece, token in model.tokenizer.vocabulary.items()}
    line = {
        "source": text,
        "target": model.tokenizer.decode(found.sequences)[0],
        "score": pytest.approx(float(scores.sum()), rel=1e-4, abs=1e-5),
        "tokens": [names[token] for token in tokens],
        "token_scores": pytest.approx(scores.tolist(), rel=1e-4, abs=1e-5),
    }
    if found.sequences_scores is not None:
        line["beam_score"] = pytest.approx(float(found.sequences_scores[0]), rel=1e-4, abs=1e-5)
    return line


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_answers_have_the_scores_of_generate(
    demo: Workshop, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts in one batch, whose shorter rows end before the longest, and each in its row of a file's."""
    folder, settings = demo.bundle("fp32"), {"max_new_tokens": 60, **settings}
    model = load(folder)
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    common = ["generate", str(folder), "--scores", "--json", *flags(settings)]
    if "do_sample" not in settings:  # else the batch decides what is drawn
        assert main([*common, *TEXTS]) == 0
        outputs = json.loads(capsys.readouterr().out)["outputs"]
        assert outputs == [expected(model, text, settings) for text in TEXTS]
    assert main([*common, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    if "do_sample" in settings:
        assert [len(line["tokens"]) for line in lines] == [len(line["token_scores"]) for line in lines]
        assert all(line["tokens"][-1] == "</s>" and max(line["token_scores"]) <= 0 for line in lines)
    else:
        assert lines == [{"index": index, **expected(model, text, settings)} for index, text in enumerate(TEXTS)]


def test_several_answers_are_lists(demo: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(demo.bundle("fp32"))
    (first, second) = model.generate_text(["spell 7"], return_scores=True, num_beams=2, num_return_sequences=2)
    assert first.beam_score is not None
    assert second.beam_score is not None
    assert first.beam_score > second.beam_score
    assert first.score == pytest.approx(first.beam_score * len(first.tokens), rel=1e-4)
    streamed = next(model.stream_text(["spell 7"], return_scores=True, num_beams=2, num_return_sequences=2))
    assert [answer.text for answer in streamed] == [first.text, second.text]
    assert [answer.beam_score for answer in streamed] == [first.beam_score, second.beam_score]


def test_people_see_each_token_below_its_answer(demo: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    model = load(demo.bundle("fp32"))
    (answer,) = model.generate_text(["spell 7"], return_scores=True)
    assert main(["generate", str(demo.bundle("fp32")), "spell 7", "--scores"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"{answer.score:.4f}\tseven"
    assert others == [
        f"\t{score:.4f}\t{token}" for score, token in zip(answer.token_scores, answer.tokens, strict=True)
    ]


def test_what_was_cut_off_goes_on_with_its_scores_and_not_without(
    demo: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("spell 7\nspell 12\n")
    out, other = tmp_path / "out.jsonl", tmp_path / "other.jsonl"
    common = ["generate", str(demo.bundle("fp32")), "--file", str(tmp_path / "in.txt"), "--json", "--out"]
    assert main([*common, str(other), "--scores"]) == 0
    write = Answers.write

    def interrupted(answers: Answers, number: int, *rest: Any) -> None:
        if number == 1:
            raise KeyboardInterrupt
        write(answers, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "write", interrupted)
        assert main([*common, str(out), "--scores"]) == 130
    capsys.readouterr()
    assert main([*common, str(out)]) == 2
    assert "answers of another bundle, file or setting" in capsys.readouterr().err
    assert main([*common, str(out), "--scores"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 1
    assert out.read_bytes() == other.read_bytes()
