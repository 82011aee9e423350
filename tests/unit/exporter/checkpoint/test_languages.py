"""Tags of languages to scripts, and texts in them."""

from __future__ import annotations

import pytest

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.languages import SEVERAL, scripts_of, written_in


@pytest.mark.parametrize(
    ("tag", "scripts"),
    [
        ("de", ("Latn",)),
        ("pt-BR", ("Latn",)),
        ("pt_BR", ("Latn",)),
        ("ru", ("Cyrl",)),
        ("sr", ("Cyrl",)),
        ("sr-Latn", ("Latn",)),
        ("pa", ("Guru",)),
        ("pa-PK", ("Arab",)),
        ("ur-Aran", ("Arab",)),
        ("zh-TW", ("Hani",)),
        ("ja", ("Hani", "Hira", "Kana")),
        ("ko", ("Hang", "Hani")),
        ("ko-Hang", ("Hang",)),
        ("iw", ("Hebr",)),
        ("ger", ("Latn",)),
        ("tlh-Latn", ("Latn",)),
        ("und-Hira", ("Hira",)),
    ],
)
def test_scripts_of_languages(tag: str, scripts: tuple[str, ...]) -> None:
    assert scripts_of([tag]) == {tag: scripts}


def test_commas_separate_too() -> None:
    assert list(scripts_of(["de, ru", "el"])) == ["de", "ru", "el"]


@pytest.mark.parametrize(
    ("tag", "nearest"),
    [
        ("jp", "ja"),
        ("cn", "zh"),
        ("gr", "el"),
        ("german", "de"),
        ("chinese", "zh"),
        ("xx", "xh"),
        ("und", "nd"),
        ("de-Foox", "de"),
    ],
)
def test_unknown_languages_are_named_with_the_nearest(tag: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"'{tag}' is no known language, did you mean '{nearest}'"):
        scripts_of(["de", tag])


@pytest.mark.parametrize("tag", ["qaa", "tlh", "日", "e", "x-y", "i-klingon", "abc"])
def test_what_no_likely_script_is_known_of_is_refused(tag: str) -> None:
    with pytest.raises(UserError, match="is no known language, did you mean"):
        scripts_of([tag])


def test_every_unknown_language_is_named() -> None:
    with pytest.raises(UserError, match=r"'jp' is no known.*'xx' is no known.*with its script"):
        scripts_of(["jp", "de", "xx"])
    with pytest.raises(UserError, match="--languages names none"):
        scripts_of([" ,"])


def test_texts_in_a_script_and_what_all_scripts_share() -> None:
    latin = written_in(["Latn"])
    assert [text for text in ("▁Straße,", "12!", "▁", "é", "▁дом", "aд", "。", "") if latin(text)] == [
        "▁Straße,",
        "12!",
        "▁",
        "é",
    ]
    assert written_in(["Hani", "Hira"])("家。ー")  # marks of several scripts, by Script_Extensions
    assert not written_in(["Latn"], common=False)("1")


def test_every_script_that_others_stand_for_is_one_of_unicode() -> None:
    for scripts in SEVERAL.values():
        written_in(scripts)
    with pytest.raises(UserError, match="needs the scripts Xxxx"):
        written_in(["Xxxx"])
