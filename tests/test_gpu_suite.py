"""The suite of ``make gpu`` without a GPU: parts of its dry run, its record, and the page that is made of it."""

import json
import os

import pytest
import torch

from benchmarks.gpu_page import page
from tests.killing import run_killed

# Of every file of checks, what takes a few seconds.
DRY_RUN = (
    "test_losses.py",
    "test_selective_scan.py",
    "test_soft_labels.py::test_values[SAM's embeddings]",
    "test_steps.py::test_a_step[DCD-labels]",
    "test_steps.py::test_a_wait_is_found",
    "test_volumes.py::test_memory[4 labels-DCD]",
    "test_processes.py::test_a_step_of_one_process[DCD]",
    "test_compilation.py::test_student[NoKD]",
    "test_life.py",
)


def run_pytest(*words: str) -> int:
    """Run pytest in the process that was forked for it."""
    return int(pytest.main([*words, "-p", "no:cacheprovider"]))


def suite(tmp_path, *words):
    """Run the suite; return how it ended, and its record if there is one."""
    record = tmp_path / "gpu.json"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    temporary = f"--basetemp={tmp_path / 'suite'}"
    ended = run_killed(
        run_pytest, *words, temporary, f"--record={record}", log=tmp_path / "log", environment=variables, after=600
    )
    return ended, json.loads(record.read_text()) if record.is_file() else None


@pytest.mark.slow
def test_dry_run(tmp_path):
    ended, record = suite(tmp_path, "--fake", *(f"tests/gpu/{name}" for name in DRY_RUN))
    assert ended.exit_code == 0, ended.output
    assert (
        record["dry_run"] and record["gpu"] is None and record["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    checks = record["checks"]
    assert len(checks) > 35 and all(check["passed"] for check in checks)
    assert all(check["figures"] and check["seconds"] >= 0 for check in checks)
    names = [check["name"] for check in checks]
    assert names[0] == "losses: a loss, FitNets in 2-D" and names[-1] == "life: of a student"  # cheap ones first


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_check_is_skipped(tmp_path):
    ended, record = suite(tmp_path, "tests/gpu")
    assert ended.exit_code == 0 and record is None
    assert "PyTorch finds no GPU" in ended.output and " skipped" in ended.output and " passed" not in ended.output


FEW_CHECKS = """
import pytest

def test_sound(figures):
    figures["error"] = 0.25

def test_wrong(figures):
    figures["error"] = 2.0
    assert figures["error"] < 1

def test_without_figures():
    pass

@pytest.mark.parametrize("side", ["left", "right"])
def test_not_finite(figures, side):
    figures["error"] = float("nan")

def test_absent():
    pytest.skip("nothing is there")
"""


def test_what_the_record_holds(tmp_path):
    folder = tmp_path / "few"
    folder.mkdir()
    (folder / "conftest.py").write_text("from tests.gpu.conftest import *")
    (folder / "test_losses.py").write_text(FEW_CHECKS)
    ended, record = suite(tmp_path, "--fake", str(folder), f"--rootdir={folder}")
    assert ended.exit_code == pytest.ExitCode.TESTS_FAILED, ended.output
    outcomes = {check["name"]: (check["passed"], check["figures"]) for check in record["checks"]}
    assert outcomes["losses: sound"] == (True, {"error": 0.25})
    assert outcomes["losses: wrong"] == (False, {"error": 2.0})
    assert outcomes["losses: without figures"] == (False, {})
    assert outcomes["losses: not finite, left"][0] is False
    assert outcomes["losses: absent"] == (None, {})
    reasons = {check["name"]: check.get("reason") for check in record["checks"]}
    assert reasons["losses: absent"] == "nothing is there" and "2.0 < 1" in reasons["losses: wrong"]
    assert reasons["losses: sound"] is None


def test_page():
    machine = {"gpu": "NVIDIA X", "gpu_gib": 80.0, "capability": "9.0", "cuda": "13.0", "cudnn": 9, "nccl": "2.2"}
    checks = [
        {"name": "volumes: memory, DCD", "passed": True, "seconds": 2.0, "figures": {"ratio": 1.25, "peak GiB": 3.5}},
        {
            "name": "volumes: memory, CWD",
            "passed": False,
            "seconds": 1.0,
            "figures": {"ratio": 2.0},
            "reason": "2 > 1.5",
        },
        {"name": "life: of a student", "passed": None, "seconds": 0.0, "figures": {}, "reason": "no data"},
    ]
    record = {"date": "2000-01-01", "python": "3.11", "versions": {"torch": "2"}, "seconds": 3.0, "checks": checks}
    written = page({**machine, **record, "dry_run": False})
    assert "on NVIDIA X (80 GiB" in written and "1 checks passed, 1 failed and 1 were skipped" in written
    assert "| DCD  | passed  | 1.25  | 3.5      | 2.0     |" in written
    assert "| CWD  | failed  | 2     |          | 1.0     |\n\n- CWD: 2 > 1.5" in written
    with pytest.raises(ValueError, match="dry run"):
        page({**machine, **record, "dry_run": True})
