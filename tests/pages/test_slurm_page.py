"""docs/slurm.md shows commands that exist, and sums that are right."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from nnunet_kd.cli import parser
from nnunet_kd.study.slurm import SlurmLauncher, SlurmOptions

PAGE = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text()
COMMANDS = re.findall(r"^(nnunet_kd .+)$", PAGE, re.MULTILINE)


def test_there_are_commands():
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line):
    parser().parse_args(shlex.split(line)[1:])


def test_options_in_the_text_exist():
    compare = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices["compare"]
    known = {option for action in compare._actions for option in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)[` ]", PAGE)) - {"--c"} <= known  # nnU-Net's


def test_numbers_of_the_jobs():
    assert SlurmOptions().notice == 90 and "90 seconds before" in PAGE
    assert SlurmLauncher.poll == 10 and "one `squeue` every ten seconds" in PAGE


def test_sums():
    runs, hours = 11 * 3 * 5, 24
    assert f"{runs} runs" in PAGE and f"{runs * hours:,} GPU-hours" in PAGE
    for line in re.findall(r"^\| (\d+) \| (\d+) \| (\d+) days? \| (-|\d+ of \d+) \|$", PAGE, re.MULTILINE):
        gpus, rounds, days = map(int, line[:3])
        idle = rounds * gpus - runs
        assert rounds == days == -(-runs // gpus) and line[3] == (f"{idle} of {gpus}" if idle else "-")
    rate = 2 * 128**3 * 4 * 4 * 300_000 / (hours * 3600) / 1e9
    assert f"{2 * 128**3 * 4 * 4 / 1e6:.0f} MB" in PAGE and f"{300_000 / (hours * 3600):.1f} steps per second" in PAGE
    assert f"{rate:.2f} GB/s" in PAGE and f"{8 * rate:.1f} GB/s" in PAGE and f"{64 * rate:.0f} GB/s" in PAGE
    assert f"{runs * 3 * 22 / 1024:.0f} GiB for {runs} runs" in PAGE and f"{250 * 11 * 3 * 5:,} segmentations" in PAGE
