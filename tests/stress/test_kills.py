"""Twenty kills of every long command, spread over all its phases."""

import pytest
import torch

from tests.conftest import SHORT
from tests.datasets import layouts
from tests.killing import needs_fork
from tests.small_networks import tiny_sam
from tests.survival import Survivor, convert, store

KILLS = 20

pytestmark = needs_fork


@pytest.mark.parametrize(
    ("name", "layout", "workers"), [("ISLES2022", layouts.isles2022, 1), ("BUSI", layouts.busi, 2)]
)
def test_a_conversion(tmp_path, name, layout, workers):
    convert(tmp_path, name, layout, workers).survives_random_kills(KILLS)


def test_soft_labels(workspace):
    torch.manual_seed(0)
    torch.save(tiny_sam().state_dict(), workspace.root / "sam.pth")
    store(workspace, workspace.root / "sam.pth").survives_random_kills(KILLS, different=3)


def tables(made):
    """Return the tables and files of a study that do not depend on the speed of the machine."""
    report = made["study/report.md"].decode()
    measured = report[report.index("## Cost") : report.index("## Further metrics")]
    lines = [line for line in report.replace(measured, "").splitlines() if line.startswith("|")]
    return lines, {name: content for name, content in made.items() if name.startswith("study/metrics.")}


def test_a_study(workspace):
    """Kill a study that trains, predicts, measures and tabulates with nnU-Net's own commands."""
    short = {**SHORT, "num_iterations_per_epoch": 1}
    workspace.plans("tiny", training=short, teacher={"plans": "nnUNetPlans"}, method={})
    study = workspace.root / "study"
    study.mkdir()

    def same(one, other):
        return tables(one) == tables(other) and not [name for name in one if "unfinished" in name]

    Survivor(
        (
            "compare",
            "-d",
            "598",
            "-p",
            "tiny",
            "-o",
            str(study),
            "-device",
            "cpu",
            "-np",
            "1",
            "-m",
            "NoKD",
            "LogitsKD",
        ),
        (study, workspace.results, workspace.preprocessed),
        workspace.root / "log",
        workspace.environment(),
        lambda left: {
            name: content for name, content in left.items() if name in ("study/metrics.csv", "study/metrics.json")
        },
        same,
    ).survives_random_kills(KILLS)
