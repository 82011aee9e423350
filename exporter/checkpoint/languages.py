"""Languages by their tags, as the scripts that they are written in, and texts in those scripts.

    scripts_of(["de", "sr", "sr-Latn", "ja"])  ->  {"de": ("Latn",), "sr": ("Cyrl",), "sr-Latn": ("Latn",),
                                                    "ja": ("Hani", "Hira", "Kana")}

A tag without a script has that of Unicode CLDR's likely subtags. A character is of a script by its Script_Extensions
(Unicode Standard Annex 24): a Devanagari danda also of Bengali, a full stop of every script.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable

from t5edge.errors import UserError

SEVERAL = {
    "Aran": ("Arab",),
    "Cyrs": ("Cyrl",),
    "Geok": ("Geor",),
    "Hanb": ("Bopo", "Hani"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Hrkt": ("Hira", "Kana"),
    "Jamo": ("Hang",),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Latf": ("Latn",),
    "Latg": ("Latn",),
    "Syre": ("Syrc",),
    "Syrj": ("Syrc",),
    "Syrn": ("Syrc",),
}
"""Codes of ISO 15924 that are variants or sums of scripts, and the scripts of Unicode that they stand for."""


def scripts_of(languages: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Unicode's scripts of each language; ``languages`` are tags of BCP 47, or several with commas between.

    Raises:
        UserError: tags that are unknown, every one of them named.
    """
    tags = [tag.strip() for given in languages for tag in given.split(",") if tag.strip()]
    if not tags:
        raise UserError("--languages names none; give tags such as de, pt-BR or sr-Latn.")
    found = {tag: _scripts(tag) for tag in tags}
    unknown = [f"'{tag}' is no known language, did you mean '{_nearest(tag)}'?" for tag in tags if not found[tag]]
    if unknown:
        raise UserError(
            f"--languages: {' '.join(unknown)} Tags are those of BCP 47, such as de or pt-BR; "
            "with its script, as in sr-Latn, a rare language is known too."
        )
    return found


def written_in(scripts: Collection[str], *, common: bool = True) -> Callable[[str], bool]:
    """Whether all characters of a text are of ``scripts`` or, with ``common``, of no script in particular.

    Raises:
        UserError: a script that is not encoded.
    """
    import regex

    wanted = [*sorted(scripts), *(("Zinh", "Zyyy") if common else ())]
    try:
        pattern = regex.compile("[" + "".join(rf"\p{{scx={script}}}" for script in wanted) + "]+")
    except regex.error as error:
        raise UserError(f"--languages needs the scripts {', '.join(wanted)}: {error}.") from error
    return lambda text: pattern.fullmatch(text) is not None


def _scripts(tag: str) -> tuple[str, ...]:
    """Of one language; () where it is unknown."""
    from langcodes import Language
    from langcodes.data_dicts import LIKELY_SUBTAGS
    from langcodes.tag_parser import LanguageTagError

    try:
        language = Language.get(tag)
    except LanguageTagError:
        return ()
    likely = (language.language or "und", f"{language.language or 'und'}-{language.territory}")
    known = language.script or (likely != ("und", "und-None") and not LIKELY_SUBTAGS.keys().isdisjoint(likely))
    if not (known and language.is_valid()):
        return ()
    script = str(language.maximize().script)
    return SEVERAL.get(script, (script,))


def _nearest(tag: str) -> str:
    """The language of the country with that code, or whose English name begins so, or whose code is like it."""
    from langcodes import Language
    from langcodes.data_dicts import LIKELY_SUBTAGS

    word = re.split("[-_]", tag)[0].lower()
    country = LIKELY_SUBTAGS.get(f"und-{word.upper()}")
    if country:
        return country.partition("-")[0]
    if len(word) > 3 and word[:3].isalpha() and _scripts(word[:3]):
        return str(Language.get(word[:3]))  # ISO 639-2's bibliographic codes
    codes = [code for code in LIKELY_SUBTAGS if "-" not in code and code != "und"]
    return difflib.get_close_matches(word[:3], codes, 1, 0.0)[0]
