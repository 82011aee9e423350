"""One self-contained HTML page about a bundle: sizes, parity, what was rounded and what it costs, ranges, speed.

Everything comes from the bundle's manifest and ``parity.json``; nothing is run, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from t5edge.bundle.engine_record import Engines
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.records import RescaleFacts, Speed
from t5edge.runtime.tensorrt.records import run_words
from t5edge.tools.report.charts import Bar, Cell, Dumbbell, bars, dumbbells, heat_map, heat_scale

ROLES = {
    "encoder": ("qkv", "o", "wi", "wo"),
    "decoder": ("qkv", "o", "cross_q", "cross_kv", "cross_o", "wi", "wo"),
}
MARKS = {True: ("pass", "parity passed"), False: ("fail", "parity failed"), None: ("open", "parity not run")}
STYLE = Path(__file__).with_name("report.css")


def report_page(folder: Path) -> str:
    """The page of a bundle as HTML text.

    Raises:
        UserError: ``folder`` is not a bundle.
    """
    manifest = Manifest.read(folder)
    parity = folder / "parity.json"
    rungs = json.loads(parity.read_text(encoding="utf-8")) if parity.is_file() else None
    sections = [
        _header(manifest),
        _sizes(manifest),
        _speed(manifest.speed),
        _sensitivity(manifest.quantization),
        _kept(manifest.quantization),
        _smoothing(manifest.quantization),
        _headroom(manifest.rescale),
        _parity(rungs),
        _engines(manifest.engines),
        _footer(manifest),
    ]
    title = escape(f"{manifest.variant}, {manifest.precision.title}")
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _header(manifest: Manifest) -> str:
    mark, words = MARKS[manifest.passed]
    facts = manifest.architecture
    line = (
        f"{facts.parameters / 1e6:,.1f} million parameters, {facts.encoder_layers} + {facts.decoder_layers} "
        f"layers, d_model {facts.d_model}, {'gated ' if facts.gated else ''}{facts.activation}"
    )
    if manifest.random_weights is not None:
        line += f", random weights from seed {manifest.random_weights}"
    return (
        f"<header><h1>{escape(manifest.variant)} in {escape(manifest.precision.title)}"
        f'<span class="badge {mark}">{words}</span></h1><p>{escape(line)}</p></header>'
        f'<div class="tiles">{"".join(_tiles(manifest))}</div>'
    )


def _tiles(manifest: Manifest) -> Iterable[str]:
    size = _bytes(manifest)
    full = 4 * manifest.architecture.parameters
    yield _tile(_megabytes(size), "graphs and weights")
    yield _tile(f"{size / full:.0%}", "of float32's bytes")
    gate = (manifest.quantization or {}).get("gate")
    if gate:
        last = gate["tried"][-1]
        yield _tile(f"{last['kl']:.1e}", f"mean KL in nats, at most {gate['max_kl']:g}")
        yield _tile(f"{last['top1']:.1%}", f"same best token, at least {gate['min_top1']:.1%}")
    if manifest.speed:
        yield _tile(f"{manifest.speed.speedup:.2f}x", "float32's speed on the exporting CPU")


def _tile(number: str, words: str) -> str:
    return f'<div class="tile"><b>{escape(number)}</b><span>{escape(words)}</span></div>'


def _bytes(manifest: Manifest) -> int:
    stored = {name: facts.bytes for name, facts in manifest.files.items() if facts.link is None}
    return sum(size for name, size in stored.items() if name.endswith((".onnx", ".safetensors")))


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.0f} kB"


def _sizes(manifest: Manifest) -> str:
    full = 4 * manifest.architecture.parameters
    rows = [Bar("float32 weights", full, _megabytes(full), muted=True)]
    stored = [(name, facts.bytes) for name, facts in manifest.files.items() if facts.link is None]
    files = sorted(stored, key=lambda item: -item[1])
    rows += [Bar(name, size, _megabytes(size)) for name, size in files[:4]]
    return _section("Size", "The largest files, against the parameters in float32.", bars(rows, "sizes of the files"))


def _section(title: str, note: str, body: str) -> str:
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p><div class="card">{body}</div></section>'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[int] = frozenset()) -> str:
    """``rows`` are HTML already; columns in ``numbers`` are set to the right."""
    kinds = [' class="number"' if index in numbers else "" for index in range(len(head))]
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _parity(found: Mapping[str, Any] | None) -> str:
    note = "Every rung against float32 PyTorch, on the bundle as written."
    if found is None:
        return _section("Parity", note, "<p>Not run: the bundle was written without verification.</p>")
    rungs = found.get("rungs") or found.get("results") or []
    rows = [
        (
            escape(rung["name"]),
            escape(_measure(rung)),
            _number(rung["value"]),
            _number(rung["limit"]),
            _verdict(str(rung["verdict"]).partition(":")[0]),
        )
        for rung in rungs
    ]
    return _section("Parity", note, _table(("rung", "measure", "value", "limit", ""), rows, frozenset({2, 3})))


def _measure(rung: Mapping[str, Any]) -> str:
    """What was measured, or why nothing was."""
    reason = str(rung["verdict"]).partition(": ")[2]
    return reason or str(rung["measure"])


def _number(value: Any) -> str:
    return "" if value is None else escape(f"{value:.3g}" if isinstance(value, float) else str(value))


def _verdict(text: str) -> str:
    kind = text if text in ("pass", "fail") else "open"
    return f'<span class="verdict-{kind}">{escape(text)}</span>'


def _sensitivity(plan: Mapping[str, Any] | None) -> str:
    if plan is None:
        return ""
    sites = [site for site in plan["sites"] if "kl" in site]
    inside = [site["kl"] for site in sites if "." in site["name"]]
    span = (min(inside), max(inside))
    maps = []
    for stack, roles in ROLES.items():
        cells = {}
        for site in sites:
            parts = site["name"].split(".")
            if parts[0] == stack and len(parts) == 4:
                cells[parts[3], int(parts[2])] = Cell(site["kl"], _site_title(site), site["kept"])
        layers = 1 + max((layer for _, layer in cells), default=-1)
        shown = [role for role in roles if any(key[0] == role for key in cells)]
        maps.append(f"<h3>{stack.title()}, by layer</h3>{heat_map(cells, shown, layers, span, stack)}")
    others = [Bar(s["name"], s["kl"], f"{s['kl']:.1e} nats") for s in sites if "." not in s["name"]]
    ends = f"<h3>Outside the layers</h3>{bars(others, 'sensitivity of embedding and output')}" if others else ""
    note = (
        "KL divergence of the next-token distribution when this one site is rounded and nothing else, in nats "
        "on a log scale. A framed site stays in higher precision."
    )
    return _section("Sensitivity", note, heat_scale(span) + "".join(maps) + ends)


def _site_title(site: Mapping[str, Any]) -> str:
    kind = "kept in higher precision" if site["kept"] else f"int{site['bits']} weights"
    if not site["kept"] and "range" in site:
        kind += f", int8 input up to {site['range']:.3g}"
    return f"{site['name']} {site['shape'][0]} x {site['shape'][1]}: KL {site['kl']:.2e} nats alone; {kind}"


def _kept(plan: Mapping[str, Any] | None) -> str:
    if plan is None:
        return ""
    gate = plan.get("gate")
    if not gate:
        return _section("Kept in higher precision", "No gate was asked for.", "<p>Everything was quantized.</p>")
    note = (
        f"The gate on the calibration texts: KL at most {gate['max_kl']:g} nats and the same best token at "
        f"{gate['min_top1']:.1%} of the positions{_ties(gate)}. "
        "The most sensitive sites go back to float until it holds."
    )
    tried = [
        (str(step["kept"]), f"{step['kl']:.2e}", f"{step['top1']:.2%}", _verdict(_gate_verdict(step, gate)))
        for step in gate["tried"]
    ]
    head = ("sites kept", "mean KL (nats)", "same best token", "")
    body = _table(head, tried, frozenset({0, 1, 2}))
    if not plan["kept"]:
        return _section(
            "Kept in higher precision", note, f"<p>Nothing: the gate holds with every site quantized.</p>{body}"
        )
    by_name = {site["name"]: site for site in plan["sites"]}
    rows = [(escape(name), f"{by_name[name].get('kl', 0):.2e}") for name in plan["kept"]]
    cost = f"<p>{len(rows)} sites, {_megabytes(plan['kept_bytes'])} more than quantized.</p>"
    return _section("Kept in higher precision", note, cost + body + _table(("site", "KL alone"), rows, frozenset({1})))


def _ties(gate: Mapping[str, Any]) -> str:
    """What counts as the same token; manifests from before this was recorded say nothing."""
    if "tie" not in gate:
        return ""
    return f", tokens within {gate['tie']:.2g} nats of each other taken as equal" if gate["tie"] else ", ties counted"


def _gate_verdict(step: Mapping[str, Any], gate: Mapping[str, Any]) -> str:
    return "pass" if step["kl"] <= gate["max_kl"] and step["top1"] >= gate["min_top1"] else "fail"


def _smoothing(plan: Mapping[str, Any] | None) -> str:
    sites = [site for site in plan["sites"] if "plain_error" in site] if plan else []
    if not plan or not sites:
        return ""
    distinct = {(s["plain_error"], s["error"]): s for s in sites}
    chosen = sorted(distinct.values(), key=lambda site: -site["plain_error"])[:30]
    rows = [Dumbbell(site["name"], site["plain_error"], site["error"]) for site in chosen]
    smoothed = sum(site["alpha"] is not None for site in sites)
    note = (
        f"Relative error of each product with rounded input and weight: hollow as it is, filled after SmoothQuant with "
        f"powers of two ({smoothed} of {len(sites)} sites). The largest {len(rows)}; texts: {plan['texts']}, "
        f"{plan['recipe']['count']} of them, observer {plan['recipe']['settings']['observer']}."
    )
    ranges = [
        (
            escape(site["name"]),
            f"{site['range']:.4g}" if "range" in site else "",
            "" if site["alpha"] is None else f"{site['alpha']:g}",
            f"{site['error']:.3%}",
        )
        for site in sites
    ]
    table = _table(("site", "input range", "alpha", "error"), ranges, frozenset({1, 2, 3}))
    chart = dumbbells(rows, "error of each product before and after smoothing")
    body = f"{chart}<details><summary>Activation ranges of all {len(sites)} sites</summary>{table}</details>"
    return _section("Activations", note, body)


def _headroom(rescale: RescaleFacts) -> str:
    rows = []
    for stack, facts in (("encoder", rescale.encoder), ("decoder", rescale.decoder)):
        if facts.largest_residual:
            headroom = f"{facts.headroom:,.1f}x" if facts.headroom else ""
            rows.append((stack, f"{facts.largest_residual:,.0f}", f"2^{facts.k}", headroom))
    if not rows:
        return ""
    note = "Largest residual activation in float32, the power of two it is divided by, and what fp16 has left above it."
    head = ("stack", "largest", "divided by", "headroom before")
    return _section("fp16 range", note, _table(head, rows, frozenset({1, 2, 3})))


def _speed(speed: Speed | None) -> str:
    if not speed:
        return ""
    rows = []
    for words, key in (("encoder", "encoder_ms"), ("decoder step", "step_ms")):
        for side, times in (("fp32", speed.fp32), ("quantized", speed.quantized)):
            value = getattr(times, key)
            rows.append(Bar(f"{words}, {side}", value, f"{value:,.2f} ms", muted=times is speed.fp32))
    note = (
        f"ONNX Runtime on the exporting machine's CPU ({speed.threads} cores), one text: {speed.source_tokens} "
        f"source tokens, then {speed.steps} steps. Best of five runs in turn."
    )
    charts = bars(rows[:2], "encoder time") + bars(rows[2:], "decoder step time")
    return _section("Speed", note, charts)


def _engines(engines: Engines) -> str:
    rows = [
        [
            escape(f"{target} {capability}"),
            escape(graph),
            _megabytes(record.bytes),
            f"{record.seconds:.1f}",
            f"{record.attention.fused} of {record.attention.expected}",
            escape(run_words(entry)),
        ]
        for target, capabilities in engines.items()
        for capability, entry in capabilities.items()
        for graph, record in entry.graphs.items()
    ]
    if not rows:
        return ""
    head = ("built for", "graph", "size", "seconds", "attentions fused", "run")
    return _section("Engines", "Built ahead of time; what running has shown.", _table(head, rows, frozenset({2, 3, 4})))


def _footer(manifest: Manifest) -> str:
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items() if version)
    key = (manifest.quantization or {}).get("recipe", {}).get("key", "")
    expression = f"<br>Calibration expression {escape(key[:16])}." if key else ""
    return f"<footer>{escape(tools)}{expression}</footer>"
