"""A report page: one HTML file with all pictures inside, light and dark, which asks the network for nothing."""
from __future__ import annotations

import base64
import html
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

from jea.files import write_bytes

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #595963; --paper: #ffffff; --tint: #f3f3f6; --rule: #c9c9d1;
        --link: #0b57b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf1; --soft: #b3b3bd; --paper: #17171a; --tint: #232329; --rule: #4a4a55; --link: #8ab8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper); }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.lead { margin: 0; color: var(--soft); }
dl.scores { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
dl.scores div { background: var(--tint); border-radius: .5rem; padding: .5rem .9rem; min-width: 8rem; }
dl.scores dt { color: var(--soft); font-size: .85rem; } dl.scores dd { margin: 0; font-size: 1.3rem;
       font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--rule); padding: .3rem .8rem .3rem 0; text-align: left; }
td.number, th.number { text-align: right; }
th button { all: unset; cursor: pointer; font-weight: 600; color: var(--link); }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\25B2"; } th[aria-sort=descending] button::after { content: " \\25BC"; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-end; }
figure { margin: 0; max-width: 100%; } figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .25rem; max-width: 20rem; }
img { max-width: 100%; min-width: 7rem; image-rendering: pixelated; height: auto; border: 1px solid var(--rule); background: #ffffff; }
.drawings img { image-rendering: auto; } .drawings figcaption { max-width: none; }
pre { background: var(--tint); padding: .75rem 1rem; border-radius: .5rem; overflow-x: auto; }
pre mark { background: none; color: inherit; font-weight: 700; text-decoration: underline; }
"""

_SORT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0], rows = [...body.rows];
    const key = row => { const text = row.cells[column].dataset.value, value = Number(text);
                         return text === "" ? NaN : isNaN(value) ? text : value; };
    rows.sort((a, b) => { const x = key(a), y = key(b);
      if (typeof x === "number" && isNaN(x)) return 1;
      if (typeof y === "number" && isNaN(y)) return -1;
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
    body.append(...rows);
    table.querySelectorAll("thead th").forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
  }));
}
"""


@dataclass
class Picture:
    """A picture of the report: the file, what it shows, and the text for who cannot see it."""
    path: Path
    caption: str
    alt: str


@dataclass
class Report:
    """What a report page shows. Parts that are empty are left out.

    scores: name -> number or text, in the order in which they are shown.
    tables: title -> {row name: {column: number}}; a click on a column's head sorts by it.
    pictures, attention, charts: in the order in which they are shown; the worst pictures first.
    config: the run's config as text; changed: the lines of it that differ from the defaults.
    facts: name -> text: versions, machine, date. command: what repeats this.
    """
    title: str
    lead: str = ""
    scores: Mapping[str, object] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()
    attention: Sequence[Picture] = ()
    charts: Sequence[Picture] = ()
    config: str = ""
    changed: frozenset = frozenset()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def html(self) -> str:
        parts = [f"<h1>{_text(self.title)}</h1>", f'<p class="lead">{_text(self.lead)}</p>' if self.lead else ""]
        if self.scores:
            parts.append(_section("Scores", '<dl class="scores">' + "".join(
                f"<div><dt>{_text(name)}</dt><dd>{_text(_shown(value))}</dd></div>"
                for name, value in self.scores.items()) + "</dl>"))
        parts += [_section(title, _table(title, rows)) for title, rows in self.tables.items() if rows]
        for title, pictures, kind in (("Pictures, the worst first", self.pictures, "figures"),
                                      ("What the attention looks at", self.attention, "figures drawings"),
                                      ("Charts", self.charts, "figures")):
            if pictures:
                parts.append(_section(title, f'<div class="{kind}">{"".join(map(_figure, pictures))}</div>'))
        if self.config:
            lines = [f"<mark>{_text(line)}</mark>" if line in self.changed else _text(line)
                     for line in self.config.splitlines()]
            note = "<p>Underlined: not the default.</p>" if self.changed else ""
            parts.append(_section("Config", note + '<pre tabindex="0">' + "\n".join(lines) + "</pre>"))
        if self.facts or self.command:
            facts = "".join(f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
                            for name, value in self.facts.items())
            command = f'<p>To repeat it:</p><pre tabindex="0">{_text(self.command)}</pre>' if self.command else ""
            parts.append(_section("Where and how", f"<table><tbody>{facts}</tbody></table>{command}"))
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        return ("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
                '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
                f"<title>{_text(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
                + "\n".join(filter(None, parts)) + f"\n</main>\n<script>{_SORT}</script>\n</body>\n</html>\n")

    def write(self, path) -> None:
        """Write the page atomically."""
        write_bytes(path, self.html().encode())


def _text(value) -> str:
    return html.escape(str(value))


def _shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else "no value"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>"


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    heads = "".join(f'<th scope="col" aria-sort="none"{kind}><button type="button">{_text(name)}</button></th>'
                    for name, kind in [("name", ""), *((column, ' class="number"') for column in columns)])
    lines = []
    for name, row in rows.items():
        cells = "".join('<td class="number" '
                        f'data-value="{_value(row.get(column))}">{_text(_cell(row.get(column)))}</td>'
                        for column in columns)
        lines.append(f'<tr><th scope="row" data-value="{_text(name)}">{_text(name)}</th>{cells}</tr>')
    return (f'<div class="wide"><table class="sortable" aria-label="{_text(title)}"><thead><tr>{heads}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


def _value(value) -> str:
    return "" if value is None or isinstance(value, float) and not math.isfinite(value) else repr(float(value))


def _cell(value) -> str:
    return "-" if value is None else _shown(value)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(Path(picture.path).read_bytes()).decode()
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(Path(picture.path).suffix.lower(), "png")
    return (f'<figure><figcaption>{_text(picture.caption)}</figcaption>'
            f'<img loading="lazy" alt="{_text(picture.alt)}" src="data:image/{kind};base64,{data}"></figure>')
