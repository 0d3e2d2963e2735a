"""The commands of the README and the documentation are ones that their parsers accept; JSON and Python can be read."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from nnunet_kd.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language):
    """Return the fenced blocks of a language as pairs of page and content."""
    return [
        (page, content)
        for page in PAGES
        for content in re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    ]


def commands():
    """Return the lines that call ``nnunet_kd``, without comments."""
    lines = [line for _, content in blocks("bash") for line in content.replace("\\\n", " ").splitlines()]
    return sorted({line.strip() for line in lines if line.strip().startswith("nnunet_kd ")})


def test_there_are_many_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize("line", commands())
def test_a_command_is_accepted_by_its_parser(line):
    try:
        parser().parse_args(shlex.split(line, comments=True)[1:])
    except SystemExit as left:
        assert left.code == 0, line  # --help


def test_json_is_json():
    found = blocks("json")
    assert found
    for page, content in found:
        try:
            json.loads(content)
        except ValueError:
            json.loads("{" + content.strip().rstrip(",") + "}")
        assert page


def test_python_compiles_and_finds_what_it_imports():
    found = blocks("python")
    assert found
    for page, content in found:
        tree = ast.parse(content, str(page))
        imports = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        exec(compile(imports, str(page), "exec"), {})
