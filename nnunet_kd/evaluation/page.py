"""Pages of HTML in one file, with their style and their figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_kd.evaluation.text import in_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #888; font-weight: 600; }
img { max-width: 100%; } .warning { background: #fff3cd; border-left: 4px solid #d39e00; padding: .5em 1em; }
"""


def whole_page(title: str, parts: Sequence[str]) -> str:
    """Return a page of HTML.

    Args:
        title: The title of the window, which is escaped.
        parts: The elements of the page.
    """
    head = f'<meta charset="utf-8"><title>{in_html(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def image(figure: Figure, caption: str) -> str:
    """Return a figure as an HTML element that holds its own pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{in_html(caption)}" src="data:image/png;base64,{content}">'
