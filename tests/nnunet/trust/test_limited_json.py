"""Untrusted JSON is read, or refused in one sentence that names the file, and never exhausts the machine."""

import json
import math
import os
from pathlib import Path

import pytest

import nnunet_kd
from nnunet_kd.nnunet.reading import read_json

DEEP = 100_000
WRONG = {
    "nothing": (b"", "it is not valid JSON"),
    "half": (b'{"a": ', "it is not valid JSON"),
    "arrays in arrays": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "it is nested deeper than 50 levels"),
    "objects in objects": (b'{"a": ' * DEEP + b"1" + b"}" * DEEP, "it is nested deeper than 50 levels"),
    "a little too deep": (b'{"a": ' * 52 + b"1" + b"}" * 52, "it is nested deeper than 50 levels"),
    "deep and never closed": (b"[" * DEEP, "it is n"),
    "another encoding": ('{"a": "ü"}'.encode("latin-1"), "it is not in UTF-8"),
    "two bytes a letter": ('{"a": 1}'.encode("utf-16"), "it is not in UTF-8"),
    "zeros": (b"\0" * 1000, "it is not valid JSON"),
    "a list": (b"[1]", "is not a JSON object"),
    "a number": (b"1", "is not a JSON object"),
    "a huge integer": (b'{"a": 1' + b"0" * 5000 + b"}", "it contains a number of 5001 digits"),
    "an integer of 65 bits": (b'{"a": -36893488147419103232}', "it contains a number of"),
    "a number that is infinite": (b'{"a": 1e999}', "it contains the number 1e999, which is not finite"),
    "infinity": (b'{"a": -Infinity}', "it contains the number -Infinity, which is not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_content_is_refused(tmp_path, name):
    content, message = WRONG[name]
    path = tmp_path / "plans.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(path, "the teacher's ")
    assert message in str(caught.value) and f"the teacher's {path}" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


def test_a_file_that_is_too_large_is_not_read_completely(tmp_path):
    path = tmp_path / "plans.json"
    with path.open("wb") as file:
        file.truncate(2**38)  # a sparse file, which takes no space on the disk
    with pytest.raises(ValueError, match=r"plans\.json: it is larger than 64 MiB"):
        read_json(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes of that kind")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "plans.json")
    with pytest.raises(ValueError, match=r"cannot read .*plans\.json: it is not a regular file"):
        read_json(tmp_path / "plans.json")


def test_a_missing_file_raises_another_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot read .*plans\.json: there is no such file"):
        read_json(tmp_path / "plans.json")


def test_what_nnunet_writes_is_read(tmp_path):
    content = {"a": [1, -2.5, None, True, "ü"], "b": {"c": 2**63 - 1}, "nested": json.loads("[" * 48 + "]" * 48)}
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({**content, "Dice": math.nan}))
    read = read_json(path)
    assert math.isnan(read.pop("Dice")) and read == content


def test_no_other_room_reads_json():
    """Only one module parses JSON files; other modules parse only text that they have just dumped."""
    package = Path(nnunet_kd.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any("json.load" in line and "json.loads(json.dumps(" not in line for line in path.read_text().splitlines())
    }
    assert found == {os.path.join("runtime", "files", "limited_json.py")}
