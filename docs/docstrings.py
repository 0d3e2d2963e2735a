"""Docstrings of the API pages: reStructuredText roles and equations in Markdown."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe


class RolesInMarkdown(griffe.Extension):
    """Rewrite the few roles that our docstrings use."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)


def in_markdown(text: str) -> str:
    """Return a docstring with Markdown instead of roles, ``.. math::`` and double backquotes."""
    text = re.sub(r"^\.\. math::(.*(?:\n(?:[ \t].*)?)*)", _displayed, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]+)`", lambda found: f"${found[1]}$", text)
    text = re.sub(r":(?:class|meth|func|mod|attr):`~?([^`]+)`", lambda found: f"`{found[1]}`", text)
    return text.replace("``", "`")


def _displayed(found: re.Match[str]) -> str:
    latex = " ".join(textwrap.dedent(found[1]).split())
    if "&" in latex:
        latex = rf"\begin{{aligned}} {latex} \end{{aligned}}"
    return f"\n$$\n{latex}\n$$\n\n"
