"""Names of cases, methods and structures, which anybody may have chosen, in pages and pictures: always text."""

from __future__ import annotations

import html
import re

LONGEST = 80  # letters of a label in a picture


def plain(text: str) -> str:
    """One line, without control characters and what is no Unicode."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text))


def in_html(text: str) -> str:
    """Inert in an element and in a quoted attribute."""
    return html.escape(plain(text))


def in_markdown(text: str) -> str:
    """Inert in a paragraph and in a cell of a table: no HTML, no link, no emphasis, no further cell.

    Underscores stay: inside words they mean nothing, and names are full of them.
    """
    text = re.sub(r"[\\`*|]|\](?=[(\[:])", r"\\\g<0>", plain(text))
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def in_figure(text: str) -> str:
    """A label Matplotlib shows as it is: dollars begin no formula, a leading underscore does not hide it."""
    text = plain(text)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
