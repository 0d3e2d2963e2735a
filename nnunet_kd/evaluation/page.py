"""Pages of HTML in one file: style, script, folding sections, charts, and galleries of pictures.

A page loads nothing from elsewhere. It follows the reader's choice of light or dark, fits every width, and prints with
all of its sections. Every text that is not a constant here is escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_kd.evaluation.chart_style import INK
from nnunet_kd.evaluation.table import Table
from nnunet_kd.evaluation.text import in_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1b1b; --soft: #5a5a5a; --line: #d8d8d8; --card: #f4f6f8;
  --warn: #fff3cd; --warn-line: #b98900; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e6e6e6; --soft: #a4a9af; --line: #383d44;
  --card: #1f242a; --warn: #3a3014; --warn-line: #d9a520; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1400px;
  margin: 2em auto; padding: 0 16px; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; line-height: 1.25; } h2 { font-size: 1.2em; margin: 2em 0 .6em; } h3 { font-size: 1em; }
.verdict { background: var(--card); border-left: 5px solid var(--accent); padding: .8em 1.2em; list-style: none;
  margin: 1em 0; font-size: 1.08em; } .verdict li + li { margin-top: .45em; }
.warning { background: var(--warn); border-left: 5px solid var(--warn-line); padding: .5em 1.2em; }
.note { color: var(--soft); max-width: 80ch; } .facts { color: var(--soft); font-size: .93em; padding-left: 1.2em; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 1.2em 2em; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .92em; line-height: 1.35; margin-bottom: .35em; }
figcaption span, .legend { color: var(--soft); } svg { width: 100%; max-width: 580px; height: auto; display: block;
  stroke-linejoin: round; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(220px, 100%), 1fr)); gap: 1em;
  align-items: end; }
.gallery img { width: 100%; max-width: 484px; display: block; border-radius: 3px; }
.legend { display: flex; flex-wrap: wrap; gap: .3em 1.4em; margin: .6em 0; }
.legend i { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin-right: .4em;
  vertical-align: -.08em; }
details { border-top: 1px solid var(--line); padding: .2em 0; } details:last-of-type { border-bottom: 1px solid
  var(--line); } summary { cursor: pointer; padding: .5em 0; } summary h2 { display: inline; margin: 0; }
.scroll { overflow-x: auto; margin: .6em 0 1em; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em; }
th, td { padding: .3em .7em; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { white-space: normal; overflow-wrap: normal; min-width: 5.5em; vertical-align: bottom; font-weight: 600;
  border-bottom: 2px solid var(--soft); }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6em;
  max-width: 16em; position: sticky; left: 0; background: var(--page); }
.sortable th { cursor: pointer; } .sortable th:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort]::after { content: " ▲"; color: var(--accent); } th[aria-sort="descending"]::after { content: " ▼"; }
@media (max-width: 600px) { body { margin: 1em auto; } th:first-child, td:first-child { max-width: 9em; } }
@media print { :root { --page: #fff; --ink: #000; --soft: #333; --line: #bbb; --card: #fff; --warn: #fff;
  color-scheme: light; } body { max-width: none; margin: 0; font-size: 10pt; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td { white-space: normal; min-width: 0; padding: .2em .4em; position: static; }
  figure, tr, h2 { break-inside: avoid; } h2, h3, summary { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

# Sorts tables by their numbers or texts, and unfolds everything for the printer.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 2) continue;
  table.classList.add("sortable");
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const key = row => {
      const text = row.cells[column].textContent.trim();
      const number = parseFloat(text.replace(/^<\\s*/, "").replace(/,/g, ""));
      return Number.isNaN(number) ? text : number;
    };
    const sort = () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rank = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : null;
      const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => rank(a, b) === null ? (typeof a === "number" ? -1 : 1) : (up ? 1 : -1) * rank(a, b));
      rows.forEach(([, row]) => table.tBodies[0].append(row));
    };
    head.tabIndex = 0;
    head.title = "sort by this column";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach(one => { one.open = true; });
});
addEventListener("afterprint", () => folded.forEach(one => { one.open = false; }));
"""


def whole_page(title: str, parts: Sequence[str]) -> str:
    """Return a page of HTML.

    Args:
        title: The title of the window, which is escaped.
        parts: The elements of the page.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{in_html(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n<script>{_SCRIPT}</script>\n'
        "</body></html>\n"
    )


def verdicts(sentences: Sequence[str]) -> str:
    """Return the sentences that a reader sees first."""
    return '<ul class="verdict">' + "".join(f"<li>{in_html(one)}</li>" for one in sentences) + "</ul>"


def warning(text: str) -> str:
    """Return a warning that cannot be overlooked."""
    return f'<p class="warning">{in_html(text)}</p>'


def facts(lines: Sequence[str]) -> str:
    """Return a list of facts in small letters."""
    return '<ul class="facts">' + "".join(f"<li>{in_html(line)}</li>" for line in lines) + "</ul>"


def section(heading: str, note: str, tables: Sequence[Table], unfolded: bool) -> str:
    """Return a section of tables that a reader can fold.

    Args:
        heading: The heading, which stays visible.
        note: What a reader must know about the tables; may be empty.
        tables: The tables; each scrolls by itself if it is too wide.
        unfolded: Whether the section is open at first.
    """
    note = f'<p class="note">{in_html(note)}</p>' if note else ""
    content = "".join(f'<div class="scroll">{table.html()}</div>' for table in tables)
    return f"{_folding(heading, unfolded)}{content}{note}</details>"


def charts(figures: Mapping[str, Figure]) -> str:
    """Return figures by caption, side by side where there is room; their black follows the colour of the text."""
    return '<div class="charts">' + "".join(_chart(*item) for item in figures.items()) + "</div>"


def folded_charts(heading: str, figures: Mapping[str, Figure]) -> str:
    """Return a section of figures that is folded at first."""
    return f"{_folding(heading, unfolded=False)}{charts(figures)}</details>"


def _folding(heading: str, unfolded: bool) -> str:
    return f"<details{' open' if unfolded else ''}><summary><h2>{in_html(heading)}</h2></summary>"


def _chart(caption: str, figure: Figure) -> str:
    """Return a figure as an SVG element with text that can be selected."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "nnunet_kd"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    content = buffer.getvalue()
    content = content[content.index("<svg") :].replace(INK, "currentColor")
    content = re.sub(r"<style[^>]*>[^<]*</style>", "", content)  # it would apply to the whole page
    content = content.replace("<svg ", f'<svg role="img" aria-label="{in_html(caption)}" ', 1)
    return f"<figure><figcaption>{in_html(caption)}</figcaption>{content}</figure>"


@dataclass(frozen=True)
class Picture:
    """A picture with its caption, which may be of any length.

    Attributes:
        title: The caption.
        note: What follows it in softer letters; may be empty.
        pixels: The colours and the opacity ``(y, x, 4)`` from 0 to 255.
    """

    title: str
    note: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Gallery:
    """Pictures of several cases.

    Attributes:
        title: The heading.
        note: What a reader must know about all of them.
        cases: The pictures of each case by its title.
        legend: The colours ``#RRGGBB`` by what they mean.
    """

    title: str
    note: str
    cases: Mapping[str, Sequence[Picture]]
    legend: Mapping[str, str]


def gallery(shown: Gallery) -> str:
    """Return a gallery as an element that holds its own pixels."""
    swatches = (
        f'<span><i style="background:{colour}"></i>{in_html(name)}</span>' for name, colour in shown.legend.items()
    )
    legend = f'<div class="legend">{"".join(swatches)}</div>'
    parts = [f"<h2>{in_html(shown.title)}</h2>", f'<p class="note">{in_html(shown.note)}</p>', legend]
    for title, pictures in shown.cases.items():
        parts.append(f"<h3>{in_html(title)}</h3>")
        parts.append('<div class="gallery">' + "".join(_picture(title, picture) for picture in pictures) + "</div>")
    return "\n".join(parts)


def _picture(case: str, picture: Picture) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, picture.pixels, format="png")
    content = base64.b64encode(buffer.getvalue()).decode()
    note = f" <span>{in_html(picture.note)}</span>" if picture.note else ""
    described = in_html(f"{case}: {picture.title}")
    return (
        f"<figure><figcaption>{in_html(picture.title)}{note}</figcaption>"
        f'<img alt="{described}" src="data:image/png;base64,{content}"></figure>'
    )
