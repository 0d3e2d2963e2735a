"""Stock nnU-Net verifies, plans and preprocesses every converted data set."""

import json
import os

import pytest

from nnunet_kd.datasets.table import DATASETS
from tests.commands import plan_and_preprocess, run_command

every_dataset = pytest.mark.parametrize("name", DATASETS)


@pytest.fixture(scope="module")
def preprocessed(converted):
    """Checked, planned and preprocessed by the functions nnUNetv2_plan_and_preprocess calls."""
    root, made = converted
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        for name in made:
            plan_and_preprocess(DATASETS[name].id, "2d")
    return root / "nnUNet_preprocessed"


@pytest.mark.slow
@pytest.mark.xdist_group("preprocessed")  # one command for all of them
@every_dataset
def test_stock_nnunet_verifies_and_preprocesses_it(converted, preprocessed, name):
    root, made = converted
    description = json.loads((made[name].folder / "dataset.json").read_text())
    assert description["numTraining"] == made[name].training > 0
    folder = preprocessed / made[name].folder.name
    assert len(list((folder / "nnUNetPlans_2d").glob("*.pkl"))) == made[name].training
    assert len(list((made[name].folder / "labelsTr").iterdir())) == made[name].training
    assert not list((root / "nnUNet_raw").glob(".unfinished*"))


@pytest.mark.slow
def test_the_command_takes_one(converted, tmp_path):
    root, made = converted
    name = "FetalHeadHC18"
    folders = {"nnUNet_raw": root / "nnUNet_raw", "nnUNet_preprocessed": tmp_path, "nnUNet_results": tmp_path}
    words = ("-d", str(DATASETS[name].id), "--verify_dataset_integrity", "-c", "2d", "-np", "1", "-npfp", "1")
    settings = {**os.environ, **{variable: str(path) for variable, path in folders.items()}, "nnUNet_n_proc_DA": "1"}
    done = run_command(["nnUNetv2_plan_and_preprocess", *words], settings)
    assert done.returncode == 0, done.stdout
    cases = list((tmp_path / made[name].folder.name / "nnUNetPlans_2d").glob("*.pkl"))
    assert len(cases) == made[name].training
