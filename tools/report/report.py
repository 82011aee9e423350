"""One self-contained HTML page about a bundle, or two: verdict, origin, targets, accuracy, speed, proof, quantization.

Everything comes from the bundle's manifest and ``parity.json``; nothing is run, and nothing is loaded from elsewhere.
The pages are ``page.html.j2`` and ``compare.html.j2``, which escape whatever they show; here is what they need besides
the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from t5edge.bundle.engine_record import Engines
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.parity_report import ParityReport
from t5edge.bundle.records import NOTICEABLE, Speed
from t5edge.bundle.schema import plain
from t5edge.errors import UserError, install
from t5edge.runtime.tensorrt.records import run_words
from t5edge.tools.report import charts
from t5edge.tools.report.charts import CONTROL, Bar
from t5edge.tools.report.compare import compared
from t5edge.tools.report.quantization import quantization_facts
from t5edge.tools.report.verdict import accuracy, checks, judge, targets, tiles

MARKER = "<!doctype html><!-- t5edge report -->\n"
"""What a page begins with. Files that begin otherwise are never overwritten."""
PARITY, WEIGHTS = "parity.json", "weights.safetensors"
Facts = dict[str, Any]


def report_page(folder: Path) -> str:
    """The page of a bundle as HTML text.

    Raises:
        UserError: ``folder`` is not a bundle, its manifest is damaged, or jinja2 or matplotlib is missing.
    """
    return _rendered("page.html.j2", folder)


def compare_page(first: Path, second: Path) -> str:
    """The page of two bundles, figures side by side, as HTML text.

    Raises:
        UserError: as ``report_page``.
    """
    return _rendered("compare.html.j2", first, second)


def _rendered(template: str, *folders: Path) -> str:
    environment = _environment()
    from jinja2 import UndefinedError

    damages = (UndefinedError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
    bundles: list[Facts] = []
    try:
        bundles.extend(_facts(folder) for folder in folders)
        facts = bundles[0] if len(bundles) == 1 else compared(*bundles)
        return MARKER + str(environment.get_template(template).render(**facts))
    except (*damages, RecursionError, ParseError) as error:
        what = CONTROL.sub("?", f"{type(error).__name__}: {error}".splitlines()[0])[:120]
        folder = folders[min(len(bundles), len(folders) - 1)]
        raise UserError(
            f"'{folder}' cannot be reported, its bundle.json or parity.json is damaged ({what}); export it again."
        ) from error


def write_page(page: str, out: Path, *folders: Path) -> None:
    """Write ``page`` to ``out``, which may be a page of an earlier run but nothing else, and not in a bundle.

    Raises:
        UserError: ``out`` is in one of the bundles ``folders``, is another file, or cannot be written.
    """
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise UserError(f"'{out}' lies in the bundle, which stays as it is; choose another --out.")
    try:
        if out.exists() and not _is_page(out):
            raise UserError(f"'{out}' exists and is not a page of 't5edge report'; remove it or choose another --out.")
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror}; choose another --out.") from error


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARKER)) == MARKER.encode()


@cache
def _environment() -> Any:
    """Templates of this folder; everything they show is escaped, control characters are made visible.

    Raises:
        UserError: jinja2 is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise UserError(f"report needs jinja2: {install('report')}") from error

    def visible(value: Any) -> Any:
        return CONTROL.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"megabytes": megabytes}
    environment.globals |= {name: _markup(getattr(charts, name)) for name in CHARTS}
    return environment


CHARTS = ("bars", "heat_map", "heat_scale", "dumbbells")


def _markup(draw: Any) -> Any:
    """A chart for the templates: it is markup already, and escapes the names in it."""
    from markupsafe import Markup

    return lambda *given: Markup(draw(*given))


def read_bundle(folder: Path) -> tuple[Manifest, ParityReport | None]:
    """The manifest of a bundle and its parity report, that of ``parity.json`` with its details where it is there.

    Raises:
        UserError: it is no bundle, or one of the files is damaged.
    """
    manifest, path = Manifest.read(folder), folder / PARITY
    return manifest, ParityReport.read(path) if path.is_file() else manifest.parity


def _facts(folder: Path) -> Facts:
    """What a bundle says, and what is computed from it."""
    manifest, parity = read_bundle(folder)
    plan, stored = manifest.quantization, _stored_files(plain(manifest.files))
    size = sum(size for name, size in stored if name.endswith((".onnx", ".safetensors")))
    return {
        "name": folder.resolve().name,
        "manifest": manifest,
        "precision": manifest.precision,
        "parity": parity,
        "verdict": judge(manifest, parity),
        "targets": targets(manifest, parity),
        "checks": [] if parity is None else checks(parity),
        "accuracy": [] if parity is None else accuracy(parity),
        "origin": origin(manifest, parity),
        "tiles": tiles(manifest, parity, size),
        "size": size,
        "sizes": _sizes(4 * manifest.architecture.parameters, stored),
        "files": [(name, megabytes(size), manifest.files[name].sha256) for name, size in stored],
        "speed": None if manifest.speed is None else _speed(manifest.speed),
        "why_untimed": _why_untimed(manifest),
        "ranges": list(_ranges(plain(manifest.rescale))),
        "engines": list(_engines(manifest.engines)),
        "quantization": None if plan is None else quantization_facts(plan),
    }


def origin(manifest: Manifest, parity: ParityReport | None) -> Facts:
    """From which checkpoint, when and where."""
    known = {} if parity is None else parity.facts
    return {
        "revision": manifest.revision,
        "key": manifest.content_key,
        "weights": next((facts.sha256 for name, facts in manifest.files.items() if name == WEIGHTS), None),
        "date": None if "date" not in known else f"{str(known['date']).replace('T', ' ')[:16]} UTC",
        "cpu": known.get("cpu"),
        "system": known.get("system"),
        "seconds": known.get("seconds"),
        "adapters": [adapter.spelled for adapter in manifest.adapters or ()],
    }


def _stored_files(files: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(name, bytes) of each file that is no link to another, the largest first."""
    stored = [(name, facts["bytes"]) for name, facts in files.items() if "link" not in facts]
    return sorted(stored, key=lambda item: -item[1])


def _sizes(full: int, stored: Sequence[tuple[str, int]]) -> tuple[Bar, ...]:
    rows = [("the parameters in float32", full), *stored[:4]]
    return tuple(Bar(name, size, megabytes(size), index == 0) for index, (name, size) in enumerate(rows))


def _speed(speed: Speed) -> Facts:
    """Each part beside float32's, with a mark where it is slower."""
    rows, drawn = [], []
    for part, (own, exact) in speed.parts.items():
        rows.append((part, f"{own:,.2f} ms", f"{exact:,.2f} ms", f"{exact / own:.2f}x", slower(exact / own)))
        sides = (Bar("float32", exact, f"{exact:,.2f} ms", True), Bar("this bundle", own, f"{own:,.2f} ms"))
        drawn.append((part, sides))
    if speed.steps:
        what = f"{speed.source_tokens} tokens and {speed.steps} steps"
        rows.append((what, "", "", f"{speed.speedup:.2f}x", slower(speed.speedup)))
    return {"rows": rows, "charts": drawn}


def slower(ratio: float) -> str:
    """What a ratio of times says: the counterpart's over the bundle's."""
    if ratio < NOTICEABLE:
        return "slower"
    return "slower, within what runs differ by" if ratio < 1 else "faster" if ratio > 1 / NOTICEABLE else "as fast"


def _why_untimed(manifest: Manifest) -> str:
    if manifest.quantization is None:
        return "only quantized bundles are timed, against float32"
    if manifest.precision.compute != "float":
        return f"this bundle computes in {manifest.precision.compute}, for which CPUs have no kernels"
    if (manifest.options or {}).get("no_verify"):
        return "the bundle was written without verification"
    return "it is not recorded, or float32 did not fit in memory"


def _ranges(rescale: Mapping[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    """Stack, largest activation, divisor and headroom of each stack whose activations were measured."""
    for stack in ("encoder", "decoder"):
        facts = rescale.get(stack) or {}
        if facts.get("largest_residual"):
            headroom = f"{facts['headroom']:,.1f}x" if facts.get("headroom") else ""
            yield stack, f"{facts['largest_residual']:,.0f}", f"2^{facts.get('k', 0)}", headroom


def _engines(engines: Engines) -> Iterable[tuple[str, ...]]:
    for target, capabilities in engines.items():
        for capability, entry in capabilities.items():
            for graph, record in entry.graphs.items():
                found = record.attention.fused
                fused = "not shown by the plan" if found is None else f"{found} of {record.attention.expected}"
                size, seconds = megabytes(record.bytes), f"{record.seconds:.1f}"
                yield f"{target} {capability}", graph, size, seconds, fused, run_words(entry)


def megabytes(size: float) -> str:
    """``size`` bytes for a reader."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.0f} kB"
