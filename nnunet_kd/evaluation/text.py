"""Escape untrusted names of cases, methods and structures, so that they remain text in pages and figures."""

from __future__ import annotations

import html
import re

LONGEST = 80  # characters of a label in a figure


def plain(text: str) -> str:
    """Convert a text to one line of valid Unicode without control characters."""
    return re.sub(r"[\ud800-\udfff]", "\ufffd", re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text))


def in_html(text: str) -> str:
    """Escape a text for an HTML element or a quoted attribute."""
    return html.escape(plain(text))


def in_markdown(text: str) -> str:
    """Escape a text for a Markdown paragraph or table cell, so that it contains no HTML, link, emphasis or cell border.

    Underscores are not escaped: they have no meaning inside words, and names often contain them.
    """
    text = re.sub(r"[\\`*|]|\](?=[(\[:])", r"\\\g<0>", plain(text))
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def in_figure(text: str) -> str:
    """Escape a label for Matplotlib, where a dollar starts a formula and a leading underscore hides a label."""
    text = plain(text)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
