"""A study of several networks."""

import json

import pytest

from nnunet_kd.cli import main
from tests.conftest import SHORT
from tests.training.small_brainseg_dmif import NAME
from tests.training.small_brainseg_dmif import plans_for as brainseg_plans

TINY = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 1}


@pytest.mark.slow
def test_rows_of_other_networks_are_trained_and_measured(modalities, monkeypatch, capsys, forked_commands):
    """A U-Net, another network, and other plans with another keyword; equal networks have equal costs."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    modalities.plans("tiny", training=TINY, student={"source_plans": "nnUNetPlans"})
    brainseg_plans(modalities, training=TINY)
    rows = {
        "DRA-UNet": {"trainer": "NoKD", "network": "dra_unet", "arch_kwargs": {"attention": False}},
        "two modalities": {"trainer": "BrainSegDMIF", "plans": NAME, "arch_kwargs": {"modalities": [1, 3]}},
        "the same U-Net": {"trainer": "NoKD", "training": {"initial_lr": 0.02}},
    }
    (modalities.root / "rows.json").write_text(json.dumps(rows))
    out = modalities.root / "study"
    words = ["compare", "-d", "596", "-c", "2d", "-p", "tiny", "-device", "cpu", "-np", "1", "-o", str(out)]
    words += ["-m", "NoKD", "--rows", str(modalities.root / "rows.json")]
    assert main(words) == 0, capsys.readouterr()
    costs = json.loads((out / "costs.json").read_text())
    assert list(costs) == ["NoKD", *rows]
    assert costs["NoKD"] == costs["the same U-Net"]
    assert len({cost["network"]["parameters"] for cost in costs.values()}) == 3
    report = (out / "report.md").read_text()
    assert all(f"| {name} " in report for name in costs)
    assert f'nnUNetTrainerBrainSegDMIF with {{"plans": "{NAME}", "arch_kwargs": {{"modalities": [1, 3]}}}}' in report
