"""The report of a run: one self-contained HTML page, drawn from summary.json alone.

Everything on the page goes through `_tag`, which escapes whatever is not already markup: names and reasons come
from sites.  The page's own policy forbids scripts and any request, so it can be mailed and opened offline.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnifm.state import write_atomic

SCHEMA = 1
KEYS = ("job", "task", "method", "seed", "versions", "status", "reason", "rounds", "partition", "init_hash",
        "final_hash", "data_source", "sites", "aggregate", "history")  # fmt: skip
MAX_ROWS = 800
"""Rows of one table; the rest is in rounds.jsonl."""
MAX_POINTS = 1200
"""Points of a plot drawn as vectors; a denser one becomes a bitmap, which is smaller."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a5195")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; yellow, too faint on white, is left out."""
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NONE = "–"
CSS = """
:root{--ink:#17212b;--soft:#5a6875;--line:#dde3e9;--tint:#f5f7f9;--accent:#0072b2;--bad:#a63600;--good:#00664b}
*{box-sizing:border-box}
body{margin:0;background:#eef1f4;color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:30px;line-height:1.2;margin:2px 0 4px;display:inline-block;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}h3{font-size:14px;margin:0 0 4px}p{margin:6px 0}
.soft,figcaption,small{color:var(--soft)}small{font-size:12px}.over{font-size:12px;letter-spacing:.09em;text-transform:uppercase}
.badge{display:inline-block;margin-left:14px;padding:4px 14px;border-radius:99px;color:#fff;font-weight:700;font-size:13px;
letter-spacing:.05em;vertical-align:8px}
.COMPLETE{background:var(--good)}.SUBSET{background:#8a5a00}.FAILED{background:#a01818}
.note{padding:10px 16px;border-radius:8px;margin:12px 0;border-left:5px solid #b87800;background:#fff5dc;overflow-wrap:anywhere}
.note.FAILED{border-color:#a01818;background:#fdeaea;color:inherit}
.demo{padding:12px 16px;border-radius:8px;margin:14px 0;color:#fff;background:repeating-linear-gradient(-45deg,#6a3460 0 14px,#74406a 14px 28px);
font-weight:700}
section,.card{background:#fff;border:1px solid var(--line);border-radius:10px}section{padding:18px 20px;margin-top:16px}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin-top:16px}.card{padding:12px 16px;overflow-wrap:anywhere}
.card b{display:block;font-size:24px;line-height:1.3;font-variant-numeric:tabular-nums}
.plots{display:grid;grid-template-columns:repeat(3,1fr);gap:14px}figure{margin:0}figure svg,figure img{width:100%;height:auto;display:block}
.legend span{margin-right:18px;white-space:nowrap}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:4px 0}
th,td{padding:7px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th:first-child,td:first-child,.text th,.text td{text-align:left}td{overflow-wrap:anywhere}
thead th{font-size:12px;color:var(--soft);background:var(--tint);white-space:nowrap}tbody th{font-weight:600}
td small{display:block}.worst{background:#fff0e6}.chip{padding:0 7px;border-radius:99px;background:var(--bad);color:#fff;font-size:11px;font-weight:700}
.up{color:var(--good)}.down{color:var(--bad)}.two{display:grid;grid-template-columns:1fr 1fr;gap:24px}
.bar{display:block;height:8px;border-radius:4px;background:var(--accent);min-width:2px}code{font-size:12px;overflow-wrap:anywhere}
.pictures{display:grid;grid-template-columns:repeat(3,1fr);gap:16px}.pictures img{border-radius:6px;background:#000}
@media(max-width:800px){.cards,.plots,.pictures,.two{grid-template-columns:1fr 1fr}}
@media print{body{background:#fff;font-size:11px}main{padding:0}section,.card,figure,tr{break-inside:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}section.long{break-inside:auto}}
"""


class Html(str):
    """Markup that is safe to show as it is; any other text is escaped when it enters the page."""


def report(path: Path) -> Path:
    """Draw the report of a finished run again, keeping the pictures of the report that is there.

    Args:
        path: a run directory (its `results/summary.json` or `summary.json` is read) or a summary file.

    Returns:
        Path of the `report.html` written beside the summary.

    Raises:
        ValueError: there is no summary, or it is not JSON of schema 1.
    """
    found = [p for p in (path / "results" / "summary.json", path / "summary.json", path) if p.is_file()]
    if not found:
        raise ValueError(f"path must be a summary.json or a run directory that holds one; got {str(path)!r}")
    page = found[0].parent / "report.html"
    try:
        write_report(_read(found[0]), page, _kept(page))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"summary must follow schema {SCHEMA}; got a wrong part in {str(found[0])!r}: {error!r:.80}") from None
    return page


def write_report(summary: Mapping[str, Any], path: Path, pictures: Mapping[str, bytes] = {}) -> None:
    """Write one self-contained HTML page atomically.

    Args:
        summary: contract summary.json, schema 1.
        path: the page.
        pictures: PNG files by caption; only of synthetic cases, since those of patients stay at their site.
    """
    body = _tag(
        "main", _head(summary), _cards(summary), _curves(summary), _results(summary), _bank(summary["history"]),
        _missing(summary["history"]), _pictures(pictures), _traffic(summary["history"]), _provenance(summary),
    )  # fmt: skip
    head = Html(f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
                '<meta name="viewport" content="width=device-width">')  # fmt: skip
    title = _tag("title", f"{summary['job']}: {summary['status']}")
    page = _tag("html", _tag("head", head, title, _tag("style", Html(CSS))), _tag("body", body), lang="en")
    write_atomic(path, f"<!doctype html>\n{page}\n".encode(errors="replace"))


def _read(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"summary must be JSON; got something else in {str(path)!r}") from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        got = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise ValueError(f"summary must have schema {SCHEMA}; got {got!r:.40} in {str(path)!r}")
    if absent := [key for key in KEYS if key not in summary]:
        raise ValueError(f"summary must hold {', '.join(KEYS)}; {str(path)!r} lacks {', '.join(absent)}")
    return summary


def _kept(page: Path) -> dict[str, bytes]:
    """The pictures of an earlier report: they exist nowhere else on the server."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([A-Za-z0-9+/=]*)" class="case">', text)
    return {html.unescape(caption): base64.b64decode(data) for caption, data in found}


# The parts of the page, from top to bottom.
def _head(summary: Mapping[str, Any]) -> Html:
    status = summary["status"]
    words = [f"task {summary['task']}", f"method {summary['method']}", f"seed {summary['seed']}"]
    if "data" in summary:
        words.insert(1, f"data {summary['data']}")
    parts = [_tag("div", "OmniFM-FLARE run report", class_="soft over"), _tag("h1", summary["job"]),
             _tag("span", status, class_=f"badge {status}"), _tag("div", " · ".join(words), class_="soft")]  # fmt: skip
    if summary["reason"]:
        parts.append(_tag("p", _tag("b", f"{status}: "), summary["reason"], class_=f"note {status}" if status == "FAILED" else "note"))
    if summary["data_source"] == "demo":
        parts.append(_tag("div", "SYNTHETIC DEMO DATA. These numbers say that the software runs, nothing about medicine.", class_="demo"))
    return _tag("header", *parts)


def _cards(summary: Mapping[str, Any]) -> Html:
    sites, history, name = summary["sites"], summary["history"], _first_metric(summary)
    rows = [row for entry in history for row in entry["sites"].values()]
    count = {key: sum(site[f"num_{key}"] for site in sites.values()) for key in ("train", "validation", "test", "refused")}
    best = summary["aggregate"].get(name, {})
    before = [site["metrics"][name]["before"] for site in sites.values() if _defined(site["metrics"][name]["before"])] if name else []
    slowest = sum(max((row["seconds"] for row in entry["sites"].values()), default=0.0) for entry in history)
    cards = [
        ("Rounds", f"{summary['rounds']['completed']} of {summary['rounds']['planned']}", "completed of planned"),
        ("Sites with test scores", f"{len(sites)} of {len(_sites(summary))}", "of all that took part or should have"),
        ("Cases", f"{count['train'] + count['validation'] + count['test']:,}",
         f"{count['train']:,} train, {count['validation']:,} validation, {count['test']:,} test; {count['refused']:,} refused"),
        (f"Mean {name or 'score'}, test", f"{_number(sum(before) / len(before) if before else None)} → {_number(best.get('mean'))}",
         "over sites, before → after local training"),
        (f"Worst {name or 'score'}, test", _number(best.get("worst")), best.get("worst_site", "no site has test scores")),
        ("Sent by sites", _size(sum(row["bytes_up"] for row in rows)), "training replies, all rounds"),
        ("Sent to sites", _size(sum(row["bytes_down"] for row in rows)), "models and extras, all rounds"),
        ("Time at sites", _seconds(sum(row["seconds"] for row in rows)), f"{_seconds(slowest)} if each round waits for its slowest site"),
    ]  # fmt: skip
    return _tag("div", *(_tag("div", _tag("span", title, class_="soft"), _tag("b", value), _tag("small", note), class_="card")
                         for title, value, note in cards), class_="cards")  # fmt: skip


def _curves(summary: Mapping[str, Any]) -> Html:
    history, sites, name = summary["history"], _sites(summary), _first_metric(summary)
    if not history:
        return _section("Training", _tag("p", "No round was completed."))
    rounds = [entry["round"] for entry in history]

    def lines(read: Any) -> dict[str, list[Any]]:
        return {site: [read(entry["sites"].get(site, {})) for entry in history] for site in sites}

    plots = [("Training loss", lines(lambda row: row.get("train_loss")))]
    if name:
        plots += [(f"Validation {name}, as received", lines(lambda row: row.get("before", {}).get(name))),
                  (f"Validation {name}, after local training", lines(lambda row: row.get("metrics", {}).get(name)))]  # fmt: skip
    scores = [value for _, series in plots[1:] for values in series.values() for value in values if _defined(value)]
    limits = (min(scores), max(scores)) if scores else None
    keys = [_tag("span", Html(f'<span style="color:{_colour(i)};margin:0 5px 0 0">{MARKERS[_marker(i)]}</span>'), site) for i, site in enumerate(sites)]
    figures = [_plot(title, rounds, series, None if i == 0 else limits) for i, (title, series) in enumerate(plots)]
    return _section("Training", _tag("p", *keys, class_="legend"), _tag("div", *figures, class_="plots"),
                    _tag("p", "A gap is a round in which a site was not asked or did not reply.", class_="soft"))  # fmt: skip


def _results(summary: Mapping[str, Any]) -> Html:
    sites, aggregate = summary["sites"], summary["aggregate"]
    metrics = list(dict.fromkeys([*(name for site in sites.values() for name in site["metrics"]), *aggregate]))
    rows = []
    for name in _sites(summary):
        site = sites.get(name)
        if site is None:
            rows.append([name, *[NONE] * 5, *["no test scores"] * len(metrics)])
            continue
        counts = [f"{site[f'num_{key}']:,}" for key in ("train", "validation", "test", "refused")]
        modalities = ", ".join(f"{key} {number:,}" for key, number in site["modalities"].items()) or NONE
        rows.append([name, *counts, modalities, *(_score(summary, name, metric) for metric in metrics)])
    table = _table(["Site", "Train", "Validation", "Test", "Refused", "Modalities", *metrics], rows)
    spread = [[name, *(_number(a[key]) for key in ("mean", "std", "worst")), a["worst_site"]] for name, a in aggregate.items()]
    return _section(
        "Test results", _tag("p", "Each cell: before → after local training in the last round, the change, the cases scored.", class_="soft"),
        table, _tag("h3", "Across sites, after local training"),
        _table(["Metric", "Mean", "Standard deviation", "Worst", "Worst site"], spread) if spread else _tag("p", "No site has test scores."),
    )  # fmt: skip


def _score(summary: Mapping[str, Any], site: str, metric: str) -> Html | str:
    """One cell.  Whether more is better is not in the summary: it follows from which site is called the worst."""
    score = summary["sites"][site]["metrics"].get(metric)
    if score is None:
        return NONE
    before, after, overall = score["before"], score["after"], summary["aggregate"].get(metric, {})
    change: Html | str = ""
    if _defined(before) and _defined(after):
        better = (after - before) * math.copysign(1, overall.get("mean", 0) - overall.get("worst", 0))
        known = better != 0 and overall.get("mean") != overall.get("worst")
        change = _tag("span", f"{after - before:+.3f}, ", class_=("up" if better > 0 else "down") if known else "soft")
    words = f"n {score['support']:,}" + (f", {score['undefined']:,} undefined" if score["undefined"] else "")
    chip = _tag("span", "worst site", class_="chip") if overall.get("worst_site") == site and len(summary["sites"]) > 1 else ""
    return _tag("div", f"{_number(before)} → ", _tag("b", _number(after)), " ", chip, _tag("small", change, words))


def _bank(history: Sequence[Mapping[str, Any]]) -> Html:
    banks = {entry["round"]: entry["bank"] for entry in history if entry.get("bank")}
    if not banks:
        return Html("")
    last = banks[max(banks)]
    parts: list[Html] = []
    if low := [str(number) for number, bank in banks.items() if bank["effective_rank"] < 2]:
        parts.append(_tag("p", _tag("b", "The bank has collapsed: "), f"effective rank below 2 in round {', '.join(low)}; "
                          "its prototypes no longer tell sites apart.", class_="note"))  # fmt: skip
    titles = {"size": "Prototypes", "effective_rank": "Effective rank", "mean_cosine": "Mean cosine similarity"}
    parts.append(_tag("div", *(_plot(f"{title}: {_number(last[key]) if key != 'size' else last[key]}", list(banks),
                                     {title: [bank[key] for bank in banks.values()]}) for key, title in titles.items()), class_="plots"))  # fmt: skip
    shares = [_share(f"By {word}, last round", last.get(f"by_{word}") or {}) for word in ("modality", "site")]
    return _section("Knowledge bank", *parts, _tag("div", *shares, class_="two"))


def _share(title: str, counts: Mapping[str, int]) -> Html:
    most = max(counts.values(), default=0) or 1
    rows = [[name, f"{number:,}", Html(f'<span class="bar" style="width:{100 * number / most:.0f}%"></span>')] for name, number in counts.items()]
    return _tag("div", _tag("h3", title), _table(["", "Prototypes", ""], rows) if rows else _tag("p", NONE))


def _missing(history: Sequence[Mapping[str, Any]]) -> Html:
    grouped: dict[tuple[str, str], list[str]] = {}
    for entry in history:
        for site, reason in entry["missing"].items():
            grouped.setdefault((site, reason), []).append(str(entry["round"]))
    rows = [[site, ", ".join(rounds), reason] for (site, reason), rounds in grouped.items()]
    text = _table(["Site", "Rounds", "Reason"], rows, "text") if rows else _tag("p", "Every site that was asked replied in every round.")
    return _section("Missing replies", text)


def _pictures(pictures: Mapping[str, bytes]) -> Html:
    if not pictures:
        return _section("Predictions", _tag("p", "Pictures of real cases stay in each site's state folder; the server never receives them."))
    figures = [
        _tag("figure", Html(f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{base64.b64encode(data).decode()}" class="case">'),
             _tag("figcaption", caption)) for caption, data in pictures.items()
    ]  # fmt: skip
    return _section("Predictions", _tag("div", *figures, class_="pictures"))


def _traffic(history: Sequence[Mapping[str, Any]]) -> Html:
    rows = [[entry["round"], site, f"{row['num_samples']:,}", _number(row["train_loss"]), _size(row["bytes_down"]), _size(row["bytes_up"]),
             _seconds(row["seconds"])] for entry in history for site, row in sorted(entry["sites"].items(), key=lambda item: _natural(item[0]))]  # fmt: skip
    headers = ["Round", "Site", "Samples", "Train loss", "To the site", "From the site", "Time"]
    return _section("Traffic and time", _table(headers, rows) if rows else _tag("p", "No reply was accepted."), class_="long")


def _provenance(summary: Mapping[str, Any]) -> Html:
    numbers = [[key, f"{value:,}"] for key, value in summary["partition"].items() if key != "hash"]
    hashes = {"partition": summary["partition"]["hash"], "shared part at start": summary["init_hash"], "shared part at end": summary["final_hash"]}
    rows = [[key, _tag("code", value or NONE)] for key, value in hashes.items()]
    versions = " · ".join(f"{package} {version}" for package, version in summary["versions"].items())
    return _section("Provenance", _tag("div", _table(["Values in the model", "Number"], numbers), _table(["SHA-256 of", ""], rows, "text"), class_="two"),
                    _tag("p", versions or "no versions", class_="soft"))  # fmt: skip


# What the parts are made of.
def _tag(name: str, *content: object, **attributes: object) -> Html:
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{words}>{''.join(item if isinstance(item, Html) else html.escape(str(item)) for item in content)}</{name}>")


def _section(title: str, *content: object, **attributes: object) -> Html:
    return _tag("section", _tag("h2", title), *content, **attributes)


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]], class_: str = "") -> Html:
    head = _tag("thead", _tag("tr", *(_tag("th", header, scope="col") for header in headers)))
    body = (_tag("tr", _tag("th", row[0], scope="row"), *(_tag("td", cell) for cell in row[1:])) for row in rows[:MAX_ROWS])
    more = _tag("p", f"{len(rows) - MAX_ROWS:,} more rows are in rounds.jsonl.", class_="soft") if len(rows) > MAX_ROWS else ""
    return _tag("div", _tag("table", head, _tag("tbody", *body), class_=class_), more, class_="scroll")


def _plot(title: str, rounds: Sequence[int], series: Mapping[str, Sequence[Any]], limits: tuple[float, float] | None = None) -> Html:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.3, 2.9), layout="constrained")
    axes = figure.subplots()
    for index, values in enumerate(series.values()):
        numbers = [value if _defined(value) else math.nan for value in values]
        axes.plot(rounds, numbers, color=_colour(index), marker=_marker(index), markersize=4.5, linewidth=1.6)
    if limits:
        room = 0.06 * (limits[1] - limits[0]) or 0.05
        axes.set_ylim(limits[0] - room, limits[1] + room)
    axes.set_xlim(min(rounds) - 0.3, max(rounds) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.grid(color="#e4e9ee")
    axes.spines[["top", "right"]].set_visible(False)
    kind = "svg" if len(rounds) * len(series) <= MAX_POINTS else "png"
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format=kind, **({"metadata": {"Date": None}} if kind == "svg" else {"dpi": 130}))
    ends = [f"{name} {_number(next((v for v in reversed(values) if _defined(v)), None))}" for name, values in series.items()]
    label = f"{title} over {len(rounds)} rounds; last values: {', '.join(ends)}"
    return _tag("figure", _tag("h3", title), _drawing(kind, buffer.getvalue(), label))


def _drawing(kind: str, data: bytes, label: str) -> Html:
    if kind == "png":
        return Html(f'<img alt="{html.escape(label)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">')
    text = data.decode()
    # Several drawings share one page: without a prefix their ids would collide.
    for start in ('id="', 'url(#', 'href="#'):
        text = text.replace(start, f"{start}{abs(hash(label))}-")
    return Html(text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1))


def _first_metric(summary: Mapping[str, Any]) -> str | None:
    return next((name for part in (*(site["metrics"] for site in summary["sites"].values()), summary["aggregate"]) for name in part), None)


def _sites(summary: Mapping[str, Any]) -> list[str]:
    seen = {name for entry in summary["history"] for name in (*entry["sites"], *entry["missing"])}
    return sorted(seen | set(summary["sites"]), key=_natural)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _marker(index: int) -> str:
    return list(MARKERS)[index % len(MARKERS)]


def _defined(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: Any) -> str:
    if not _defined(value):
        return NONE
    return f"{value:.1e}" if 0 < abs(value) < 0.0005 else f"{value:.3f}" if abs(value) < 10 else f"{value:,.2f}"


def _size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            break
        value /= 1000
    else:
        unit, value = "TB", value
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
