"""Between a person's text and ids: the bundle's tokenizer and generation settings against the checkpoint's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from t5edge.bundle.parity_report import CheckResult, at_most, failure, not_applicable
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.tokenizer_files import tokenizer_json
from t5edge.parity.subject import Subject
from t5edge.runtime.tokenizer import BundleTokenizer

TOKENIZER = "tokenizer.json"
SETTINGS = "generation_config.json"
CONFIG = "config.json"
HARD_TEXTS = (
    "",
    " ",
    "a",
    "translate English to German: The house is wonderful.",
    "  two  spaces, a\ttab and a\nline break  ",
    "punctuation , set off ; isn't it ? {braces} [brackets] <tags> `ticks` ~ ^ | \\",
    "Ünïcödé, déjà vu, Straße, naïve, Ærøskøbing, ţară, Ελλάδα, Москва",
    "e\u0301 and \u00e9, \ufb01 and fi, \uff21 and A, \u00bd, \u2460, \u212b",
    "你好\uff0c世界。 こんにちは 안녕하세요 สวัสดี नमस्ते مرحبا שלום",
    "\U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "zero\u200bwidth, soft\u00adhyphen, no\u00a0break, \ufeffmark, \u202eright to left",
    "fill <extra_id_0> and <extra_id_1> in, or<extra_id_2>here </s> <pad> <unk>",
    "1234567890 3.14159 -1e-05 0x7f $9.99 50% 12:30 2026-01-31",
    "\x00\x01\x7f",
    "word " * 2000,
)
"""What tokenizers disagree on: empty text, white space, normal forms, scripts, emoji, special tokens, length."""


def text(subject: Subject, name: str) -> Iterator[CheckResult]:
    """9. Ids, answers and generation settings equal those that the checkpoint's files give.

    The tokenizer is made from the checkpoint anew, so that a file that was exchanged, cut or edited since is found.
    What transformers makes of the same files is compared in the tests.
    """
    yield _settings(subject, name)
    yield _config(subject, name)
    ours, theirs = subject.opener.folder / TOKENIZER, tokenizer_json(subject.checkpoint)
    if theirs is None and not ours.is_file():
        yield not_applicable(name, "the checkpoint has no tokenizer")
    elif theirs is None or not ours.is_file():
        yield failure(name, f"{TOKENIZER} is {'of no checkpoint file' if theirs is None else 'missing'}")
    else:
        try:
            yield from _tokenizers(subject, name, theirs)
        except UserError as error:
            yield failure(name, str(error))


def _settings(subject: Subject, name: str) -> CheckResult:
    """Start, end and padding ids, lengths, beams: in the manifest, which counts, and in the file beside it."""
    expected, beside = subject.checkpoint.generation_config, _read(subject.opener.folder / SETTINGS)
    if beside is None:
        return failure(name, f"{SETTINGS} cannot be read")
    wrong = sorted({*_differing(subject.model.manifest.generation, expected), *_differing(beside, expected)})
    return at_most(name, f"generation settings unlike the checkpoint's{_listed(wrong)}", len(wrong), 0)


def _config(subject: Subject, name: str) -> CheckResult:
    """The runtime does not read ``config.json``, but other clients of the bundle do."""
    beside = _read(subject.opener.folder / CONFIG)
    if beside is None:
        return failure(name, f"{CONFIG} cannot be read")
    expected = subject.checkpoint.config.items()  # other layouts spell more of it out, and drop nulls
    wrong = sorted(key for key, value in expected if value is not None and beside.get(key) != value)
    return at_most(name, f"entries of {CONFIG} unlike the checkpoint's{_listed(wrong)}", len(wrong), 0)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; empty where there is no file, None where it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _listed(names: list[str]) -> str:
    return f": {', '.join(names)}" if names else ""


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [key for key in {*found, *expected} if found.get(key) != expected.get(key)]


def _tokenizers(subject: Subject, name: str, theirs: bytes) -> Iterator[CheckResult]:
    ours = subject.model.tokenizer
    with TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER).write_bytes(theirs)
        expected = BundleTokenizer(Path(folder), 0)
    tokens = set(ours.vocabulary.items()) ^ set(expected.vocabulary.items())
    yield at_most(name, "tokens with another id than the checkpoint's", len({token for token, _ in tokens}), 0)
    found = _read(subject.opener.folder / TOKENIZER) or {}
    wrong = sorted(_differing(found.get("model") or {}, json.loads(theirs)["model"]))
    yield at_most(name, f"parts of the tokenizer's model unlike the checkpoint's{_listed(wrong)}", len(wrong), 0)
    rows = expected.ids(HARD_TEXTS)
    pairs = zip(HARD_TEXTS, rows, ours.ids(HARD_TEXTS), strict=True)
    yield at_most(name, *_wrong("encoded", [text for text, row, found in pairs if row != found]))
    wrong = [
        text
        for text, row in zip(HARD_TEXTS, rows, strict=True)
        if any(ours.text(row, skip) != expected.text(row, skip) for skip in (True, False))
    ]
    yield at_most(name, *_wrong("decoded", wrong))


def _wrong(done: str, texts: list[str]) -> tuple[str, int, int]:
    """Measure, value and limit of texts that differ; the first of them is shown in ASCII."""
    shown = f", the first {texts[0][:40]!a}" if texts else ""
    return f"hard texts {done} unlike the checkpoint's{shown}", len(texts), 0
