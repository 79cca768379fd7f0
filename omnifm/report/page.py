"""What the report's page is made of: escaped tags, tables, plots, numbers, one style sheet.  It knows no run."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

MAX_ROWS = 400
"""Rows of one table, so that a page of any run stays small enough to mail."""
MAX_POINTS = 800
"""Points of a plot drawn as vectors; a denser one becomes a bitmap, which is smaller."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a5195")
"""After Okabe and Ito, whose palette colour-blind readers can tell apart; its yellow is too faint on white."""
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
NONE = "–"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CSS = """
:root{--ink:#17212b;--soft:#56636f;--line:#dde3e9;--tint:#f5f7f9;--accent:#0072b2;--bad:#a63600;--good:#00664b}
*{box-sizing:border-box}
body{margin:0;background:#eef1f4;color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:30px;line-height:1.2;margin:2px 0 4px;display:inline-block;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 10px}h3{font-size:14px;margin:8px 0 4px}p{margin:6px 0}
.soft,figcaption,small{color:var(--soft)}small,figcaption{font-size:12px}
.over{font-size:12px;letter-spacing:.09em;text-transform:uppercase}
.badge{display:inline-block;margin-left:14px;padding:4px 14px;border-radius:99px;color:#fff;background:#56636f;
font-weight:700;font-size:13px;letter-spacing:.05em;vertical-align:8px}
.COMPLETE{background:var(--good)}.SUBSET{background:#8a5a00}.FAILED{background:#a01818}
.note{padding:10px 16px;border-radius:8px;margin:12px 0;border-left:5px solid #b87800;background:#fff5dc;
overflow-wrap:anywhere}.note.severe{border-color:#a01818;background:#fdeaea}
.demo{padding:12px 16px;border-radius:8px;margin:14px 0;color:#fff;font-weight:700;
background:repeating-linear-gradient(-45deg,#6a3460 0 14px,#74406a 14px 28px)}
section,.card{background:#fff;border:1px solid var(--line);border-radius:10px}section{padding:18px 20px;margin-top:16px}
.cards{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:12px;margin-top:16px}
.card{padding:12px 16px;overflow-wrap:anywhere}.card small{display:block;line-height:1.4}
.card b{display:block;font-size:24px;line-height:1.3;font-variant-numeric:tabular-nums}
.plots{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:14px}
.pictures{display:flex;flex-wrap:wrap;gap:18px}.pictures img{border-radius:6px;max-width:100%}
figure{margin:0}figure svg{width:100%;height:auto;display:block}section>img{max-width:100%;height:auto}
.legend span{display:inline-block;margin-right:18px;max-width:100%;overflow-wrap:anywhere}.legend i{font-style:normal}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:4px 0}
th,td{padding:7px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
.text{text-align:left}thead th{font-size:12px;color:var(--soft);background:var(--tint);white-space:nowrap}
.tight thead th{white-space:normal;vertical-align:bottom}.tight th,.tight td{padding:7px 6px}
.tight td,.tight tbody th{white-space:nowrap}
tbody th{font-weight:600;min-width:72px}th.text,td.text{max-width:420px;overflow-wrap:break-word}
td small{display:block}td div{white-space:nowrap}.worst{display:inline-block;margin:-3px -6px;padding:3px 6px;
border-radius:6px;background:#ffeadb}.worst em{font-style:normal;font-weight:700;color:var(--bad)}
.up{color:var(--good)}.down{color:var(--bad)}.two{display:grid;grid-template-columns:1fr 1fr;gap:24px}
.track{display:block;width:180px;height:10px;margin-top:6px;border-radius:5px;background:var(--tint)}
.bar{display:block;height:10px;border-radius:5px;background:var(--accent);min-width:2px}
code{font-size:12px;overflow-wrap:anywhere}
@media(max-width:800px){.cards,.plots{grid-template-columns:1fr 1fr}.two{grid-template-columns:1fr}}
@media print{body{background:#fff;font-size:11px}main{padding:0}
.card,figure,tr{break-inside:avoid}h2,h3{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}th,td{padding:4px 6px}.card b{font-size:18px}}
"""


class Html(str):
    """Markup that is safe to show as it is; any other text is escaped when it enters the page."""


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Return `<name attributes>content</name>`; `class_` is the attribute class.  Everything else is escaped."""
    words = "".join(f' {key.rstrip("_")}="{html.escape(str(value))}"' for key, value in attributes.items())
    inner = "".join(item if isinstance(item, Html) else html.escape(str(item)) for item in content)
    return Html(f"<{name}{words}>{inner}</{name}>")


def document(title: str, *body: object) -> bytes:
    """A whole page.  Its policy forbids scripts and every request: it can be mailed and opened offline."""
    head = Html(
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
    )
    style = tag("style", Html(CSS))
    page = tag("html", tag("head", head, tag("title", title), style), tag("body", tag("main", *body)), lang="en")
    return f"<!doctype html>\n{page}\n".encode(errors="replace")  # a lone surrogate in a name must not end a run


def section(title: str, *content: object) -> Html:
    """A titled panel."""
    return tag("section", tag("h2", title), *content)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], text: Iterable[int] = (0,)) -> Html:
    """A table whose first column names its rows; the columns numbered in `text` are aligned as text."""
    left = {"class_": "text"}
    style = [left if column in set(text) else {} for column in range(len(headers))]
    head = tag("tr", *(tag("th", word, scope="col", **kind) for word, kind in zip(headers, style, strict=True)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", **style[0]),
            *(tag("td", cell, **kind) for cell, kind in zip(row[1:], style[1:], strict=True)),
        )
        for row in rows[:MAX_ROWS]
    ]
    hidden = len(rows) - MAX_ROWS
    more = tag("p", f"{hidden:,} more rows are in summary.json.", class_="soft") if hidden > 0 else ""
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), more, class_="scroll")


def bar(share: int | float) -> Html:
    """A horizontal bar that fills this share of its track, in [0, 1]."""
    return tag("span", tag("span", class_="bar", style=f"width:{100 * share:.0f}%"), class_="track")


def image(png: bytes, alt: str) -> Html:
    """A PNG file inside the page."""
    return Html(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')


def legend(names: Iterable[str]) -> Html:
    """The colour and marker of each series, in the order in which `plot` draws them."""
    glyphs = list(MARKERS.values())
    keys = [
        tag("span", tag("i", glyphs[i % len(glyphs)], style=f"color:{COLOURS[i % len(COLOURS)]}"), " ", name)
        for i, name in enumerate(names)
    ]
    return tag("p", *keys, class_="legend")


def plot(
    title: str,
    rounds: Sequence[int],
    series: Mapping[str, Sequence[Any]],
    limits: tuple[Any, Any] | None = None,
) -> Html:
    """Curves over rounds; a value that is not `defined` leaves a gap.  The drawing holds no name, the alt text does."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    figure = Figure(figsize=(4.3, 2.9), layout="constrained")
    axes = figure.subplots()
    markers, step = list(MARKERS), 1 + len(rounds) // 30
    for i, values in enumerate(series.values()):
        numbers = [math.nan, *(value if defined(value) else math.nan for value in values), math.nan]
        alone = [math.isnan(left) and math.isnan(right) for left, right in zip(numbers, numbers[2:], strict=False)]
        marked = [k for k, lonely in enumerate(alone) if lonely or k % step == 0]  # no line would show a lonely point
        axes.plot(
            rounds,
            numbers[1:-1],
            color=COLOURS[i % len(COLOURS)],
            marker=markers[i % len(markers)],
            linewidth=1.4,
            markersize=4.5,
            markevery=marked,
        )
    if limits:
        room = 0.06 * (limits[1] - limits[0]) or 0.05
        axes.set_ylim(limits[0] - room, limits[1] + room)
    axes.set_xlim(min(rounds) - 0.3, max(rounds) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("round")
    axes.grid(color="#e4e9ee")
    axes.spines[["top", "right"]].set_visible(False)
    ends = [f"{name} {number(next(filter(defined, reversed(values)), None))}" for name, values in series.items()]
    alt = f"{title} over {len(rounds)} rounds; last values: {', '.join(ends)}"
    if len(rounds) * len(series) > MAX_POINTS:
        buffer, few_colours = io.BytesIO(), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        Image.open(buffer).convert("RGB").quantize(32).save(few_colours, format="PNG", optimize=True)
        return tag("figure", tag("h3", title), image(few_colours.getvalue(), alt))
    return drawing(title, figure, alt)


def drawing(title: str, figure: Any, alt: str) -> Html:
    """A matplotlib figure as vectors under its title; `alt` says it in words, each drawing of a page its own."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "omnifm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return tag("figure", tag("h3", title), _vectors(buffer.getvalue().decode(), alt))


def _vectors(svg: str, alt: str) -> Html:
    # Several drawings share one page: without a prefix their ids would collide.
    for start in ('id="', "url(#", 'href="#'):
        svg = svg.replace(start, f"{start}p{crc32(alt.encode(errors='replace')):x}-")
    return Html(svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1))


# Numbers for people.
def defined(value: Any) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def number(value: Any) -> str:
    """A score or loss, about four digits; a dash where it is not defined."""
    if not defined(value):
        return NONE
    if 0 < abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.2f}"


def size(num_bytes: int | float) -> str:
    """Bytes in the decimal unit that fits."""
    if not defined(num_bytes):
        return NONE
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    power = min(int(math.log10(num_bytes) / 3 + 1e-9), 4)
    return f"{num_bytes / 1000**power:.2f} {' kMGT'[power]}B"


def duration(seconds: int | float) -> str:
    """Seconds, minutes or hours."""
    if not defined(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `1, 3–5`."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}{NONE}{run[-1]}" for run in runs)


def natural(name: str) -> list[int | str]:
    """Sorting key that puts site-2 before site-10: numbers and the text between them alternate."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
