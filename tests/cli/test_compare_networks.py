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
    """A U-Net, DRA-UNet's ablation beside it, other plans and another keyword; equal networks have equal costs."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    modalities.plans("tiny", training=TINY, student={"source_plans": "nnUNetPlans"})
    brainseg_plans(modalities, training=TINY)
    rows = {
        "two modalities": {"trainer": "BrainSegDMIF", "plans": NAME, "arch_kwargs": {"modalities": [1, 3]}},
        "all modalities": {"trainer": "BrainSegDMIF", "plans": NAME},
        "the same U-Net": {"trainer": "NoKD", "training": {"initial_lr": 0.02}},
    }
    (modalities.root / "rows.json").write_text(json.dumps(rows))
    out = modalities.root / "study"
    words = ["compare", "-d", "596", "-c", "2d", "-p", "tiny", "-device", "cpu", "-np", "1", "-o", str(out)]
    words += ["-m", "NoKD", "--ablation", "dra_unet", "--rows", str(modalities.root / "rows.json")]
    assert main(words) == 0, capsys.readouterr()
    costs = json.loads((out / "costs.json").read_text())
    assert list(costs) == ["NoKD", *rows, *(f"NoKD {row}" for row in ("U-Net", "Res-SimAM", "DPRM", "DRA-UNet"))]
    assert costs["NoKD"] == costs["the same U-Net"]
    parameters = {name: cost["network"]["parameters"] for name, cost in costs.items()}
    assert parameters["NoKD U-Net"] == parameters["NoKD Res-SimAM"] < parameters["NoKD DPRM"]
    assert parameters["two modalities"] < parameters["all modalities"]
    report = (out / "report.md").read_text()
    assert all(f"| {name} " in report for name in costs)
    assert f'nnUNetTrainerBrainSegDMIF with {{"plans": "{NAME}", "arch_kwargs": {{"modalities": [1, 3]}}}}' in report
