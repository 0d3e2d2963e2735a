"""Images without labels through nnU-Net's own commands, from raw files to a prediction."""

import json

import numpy as np
import pytest
import SimpleITK

from tests.conftest import SHORT
from tests.training.unlabelled_cases import WITH_IGNORE, forget_file, split

OPTIONS = ("-p", "short", "-tr", "nnUNetTrainerSoftKD", "-device", "cpu")


def without_labels(workspace, cases):
    """Take the labels of raw cases away, declare the ignore label, and let nnU-Net plan and preprocess."""
    for path in (workspace.raw / "dataset.json", workspace.teacher / "dataset.json"):
        description = {**json.loads(path.read_text()), "labels": WITH_IGNORE}
        path.unlink()
        path.write_text(json.dumps(description))
    for case in cases:
        forget_file(workspace.raw / "labelsTr" / f"{case}.nii.gz")
    workspace.command("nnUNetv2_plan_and_preprocess", "-d", "598", "-c", "3d_fullres", "--verify_dataset_integrity")
    path = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["batch_size"] = 2
    path.write_text(json.dumps(plans))
    method = {"soft_labels": "model"}
    workspace.plans("short", training={**SHORT, "num_epochs": 1}, teacher={"plans": "nnUNetPlans"}, method=method)


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "wholly unlabelled"])
def test_from_raw_images_to_a_prediction(workspace, tmp_path, mixed):
    train, validation = split(workspace)
    unknown = [train[0], validation[0]] if mixed else [*train, *validation]
    without_labels(workspace, unknown)
    experiment = ("-d", "598", "-c", "3d_fullres")
    workspace.command("nnunet_kd", "soft-labels", *experiment, "-p", "short", "--teacher", "-f", "0", "--name", "model")
    found = workspace.command("nnunet_kd", "doctor", "-d", "598", "-p", "short", "-tr", "nnUNetTrainerSoftKD")
    assert f"{len(unknown)} of 6 cases have no reference, but all of them have soft labels 'model'" in found
    workspace.command("nnUNetv2_train", "598", "3d_fullres", "0", *OPTIONS)
    folder = workspace.results / "nnUNetTrainerSoftKD__short__3d_fullres"
    log = next((folder / "fold_0").glob("training_log*")).read_text()
    assert "initial weights: the best channels of " in log
    assert (
        f"{len(unknown) - (1 if mixed else 2)} of 4 training cases have no reference: they learn from the soft" in log
    )
    if mixed:
        assert "the pseudo Dice is of the 1 validation cases with a reference" in log
        assert "the mean Dice is of the other 1 alone" in log
    else:
        assert "the pseudo Dice is agreement with the teacher's segmentation" in log
        assert "nothing is known about the accuracy of this model" in log
    summary = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())
    assert np.isnan(summary["foreground_mean"]["Dice"]) == (not mixed)
    made = tmp_path / "predicted"
    images = str(workspace.raw / "imagesTs")
    workspace.command("nnUNetv2_predict", *experiment, "-f", "0", "-i", images, "-o", str(made), *OPTIONS)
    [prediction] = made.glob("*.nii.gz")
    assert {*np.unique(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(prediction))))} <= {0, 1, 2}
