"""The runner: cheap checks first, each with its figures, all in one JSON record.

``pytest tests/gpu`` needs a GPU; with ``--fake`` every check runs on the CPU at a small size.
"""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.place import Place
from tests.gpu.record import Record

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # whose scripts import each other

# The files of checks, the cheapest first.
ORDER = ("losses", "selective_scan", "soft_labels", "steps", "volumes", "processes", "compilation", "life")
FIGURES = pytest.StashKey[dict]()
RECORD = pytest.StashKey[Record]()


def pytest_addoption(parser):
    group = parser.getgroup("gpu", "checks on a GPU")
    group.addoption("--fake", action="store_true", help="execute the checks on the CPU at small sizes: a dry run")
    group.addoption("--record", type=Path, default=Path("gpu.json"), help="the file of the record [gpu.json]")


def pytest_configure(config):
    config.stash[RECORD] = Record(config.getoption("fake"))


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))  # stable: files keep their order
    if not config.getoption("fake") and not torch.cuda.is_available():
        reason = "PyTorch finds no GPU: run this on a machine with one, or give --fake for a dry run"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.figures = item.stash.get(FIGURES, {})
    if report.when == "call" and report.passed and not report.figures:
        report.outcome, report.longrepr = "failed", f"{item.name} has no figures"
    return report


class Reports:
    """Turn the reports of a check's three phases into one entry of the record."""

    def __init__(self, record: Record) -> None:
        self._record, self._phases = record, []

    def pytest_runtest_logreport(self, report):
        self._phases.append(report)
        if report.when != "teardown":
            return
        phases, self._phases = self._phases, []
        failed = next((phase for phase in phases if phase.failed), None)
        skipped = next((phase for phase in phases if phase.skipped), None)
        reason = None
        if failed is not None:
            reason = next((line for line in failed.longreprtext.splitlines() if line.startswith("E ")), "")[1:].strip()
        elif skipped is not None:
            reason = skipped.longrepr[2].removeprefix("Skipped: ")
        passed = None if skipped is not None and failed is None else failed is None
        figures = next((getattr(phase, "figures", {}) for phase in phases if phase.when == "call"), {})
        self._record.add(_name(report.nodeid), passed, figures, sum(phase.duration for phase in phases), reason)


def _name(nodeid):
    """``tests/gpu/test_losses.py::test_a_loss[dcd-3-D]`` is ``losses: a loss, dcd-3-D``."""
    file, _, check = nodeid.partition("::")
    words, _, case = check.partition("[")
    name = f"{Path(file).stem.removeprefix('test_')}: {words.removeprefix('test_')}".replace("_", " ")
    return f"{name}, {case.removesuffix(']')}" if case else name


def pytest_sessionstart(session):
    session.config.pluginmanager.register(Reports(session.config.stash[RECORD]))


def pytest_sessionfinish(session):
    record = session.config.stash[RECORD]
    if any(check["passed"] is not None for check in record.checks):
        record.write(session.config.getoption("record"))


@pytest.fixture(scope="session")
def place(pytestconfig):
    """Where the checks run."""
    return Place(pytestconfig.getoption("fake"))


@pytest.fixture
def figures(request):
    """What a check measures: name -> number or word, which goes into the record whether the check passes or fails."""
    measured = request.node.stash.setdefault(FIGURES, {})
    yield measured
    for name, value in measured.items():
        assert isinstance(value, int | str) or math.isfinite(value), f"{name} is {value}"


@pytest.fixture(autouse=True)
def empty_device(place):
    """Give the memory of a check back, so that the next one begins with an empty device."""
    yield
    if not place.fake:
        gc.collect()  # trainers hold each other in circles
        torch.cuda.empty_cache()
