"""Hooks of MkDocs: pages made of files outside docs/, the commands' page, and equations as MathML."""

from __future__ import annotations

import argparse
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from nnunet_kd.cli import parser

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "plans/README.md": "reference/plans.md",
    "benchmarks/study.md": "study.md",
    "benchmarks/label_free.md": "label-free-study.md",
}
PICTURES = {"benchmarks/study.png": "study.png"}
COMMANDS = "reference/cli.md"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that are not in docs/."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for source, picture in PICTURES.items():
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site; a link to another file of the repository becomes text."""
    here = page.file.src_uri
    source = {to: one for one, to in ELSEWHERE.items()}.get(here, f"docs/{here}")
    return _LINK.sub(lambda found: _linked(found, posixpath.dirname(source), posixpath.dirname(here)), markdown)


def _linked(found: re.Match[str], source: str, here: str) -> str:
    mark, text, target = found.groups()
    if re.match(r"[a-z]+:|#|<", target):
        return found[0]
    path, _, anchor = target.partition("#")
    wanted = posixpath.normpath(posixpath.join(source, path))
    if wanted.startswith("docs/"):
        page = wanted.removeprefix("docs/")
    elif (page := {**ELSEWHERE, **PICTURES}.get(wanted, "")) == "":
        if not (ROOT / wanted).exists():
            raise FileNotFoundError(f"a link leads to {wanted}, which does not exist")
        return text
    return f"{mark}[{text}]({posixpath.relpath(page, here or '.')}{'#' * bool(anchor)}{anchor})"


def on_page_content(content: str, **_: Any) -> str:
    """Write equations as MathML, which browsers show without any script."""

    def equation(found: re.Match[str]) -> str:
        opening, latex = html.unescape(found[2])[:2], html.unescape(found[2])[2:-2]
        return convert(latex.strip(), display="block" if opening == r"\[" else "inline")

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', equation, content, flags=re.DOTALL)


def commands_page() -> str:
    """Return the page of all commands as Markdown, from the parsers that read them."""
    lines = [
        "# Commands",
        "",
        "This page is made from the parsers of the commands, as `--help` is.",
    ]
    top = parser()
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        lines += ["", f"## nnunet_kd {name}", "", _described(command.description or "")]
        lines += ["", "| argument | meaning |", "|---|---|"]
        formatter = command._get_formatter()
        for action in command._actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
                continue
            words = formatter._format_action_invocation(action)
            meaning = formatter._expand_help(action) if action.help else ""
            required = " **Required.**" if action.required and action.option_strings else ""
            lines.append(f"| `{words}` | {_cell(meaning)}{required} |")
    return "\n".join(lines) + "\n"


def _described(description: str) -> str:
    """Return a description as Markdown: paragraphs, and examples (two spaces) with their meaning (six) as a list."""
    text = ""
    for line in description.strip().splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            text += "\n\n"
        elif indent == 2:
            text += f"\n- `{line.strip()}`<br>"
        else:
            text += f"{' ' if indent == 0 else '  '}{_cell(line)}"
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n +", "\n", text)).strip()


def _cell(text: str) -> str:
    """Return text for a cell of a table, with nothing that Markdown would read."""
    return re.sub(r"([|*_\[\]<])", r"\\\1", " ".join(text.split()))
