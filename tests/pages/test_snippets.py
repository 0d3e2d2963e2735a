"""Parsers accept the commands of the README and of docs/, code has the messages, and JSON and Python can be read."""

import argparse
import ast
import json
import re
import shlex
from importlib.metadata import entry_points

import pytest

from nnunet_kd.cli import parser
from tests.pages.blocks import ROOT, blocks, commands

NNUNET = [
    line[line.index("nnUNetv2_") :] for line in commands() if re.match(r"(CUDA_VISIBLE_DEVICES=\d )?nnUNetv2_", line)
]
OURS = [line for line in commands() if line.startswith("nnunet_kd ")]
# The wheel of the runtime is built, installed and used by tests/runtime/test_alone.py.
OTHERS = ("pip install ", "export nnUNet_", "python -m build --wheel runtime", "nnunet_kd_predict ")


def test_every_command_is_checked():
    assert len(OURS) > 20 and len(NNUNET) > 10
    left = [line for line in commands() if line not in OURS and not re.search("^(CUDA.* )?nnUNetv2_", line)]
    assert not [line for line in left if not line.startswith(OTHERS)]


@pytest.mark.parametrize("line", OURS)
def test_our_parser_accepts(line):
    try:
        parser().parse_args(shlex.split(line, comments=True)[1:])
    except SystemExit as left:
        assert left.code == 0, line  # --help


class ParsedError(Exception):
    """nnU-Net's parser has accepted the arguments."""


@pytest.mark.parametrize("line", NNUNET)
def test_the_parser_of_nnunet_accepts(line, monkeypatch):
    name, *arguments = shlex.split(line, comments=True)
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *_):
        raise ParsedError(parse(self, arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    (script,) = entry_points(group="console_scripts", name=name)
    with pytest.raises(ParsedError):
        script.load()()


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


@pytest.fixture(scope="module")
def texts():
    """Every text in the package, with an ellipsis for each value that is put into it."""
    found = set()
    for path in (ROOT / "nnunet_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


MESSAGES = [line for _, content in blocks("text") for line in content.splitlines() if "…" in line]


def test_there_are_messages():
    assert len(MESSAGES) >= 14


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_word_for_word(message, texts):
    assert message in texts
