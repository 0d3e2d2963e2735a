"""A real teacher's soft labels of raw images, if it lies beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.cli import main
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.soft_labels import SoftLabelStore

DATA = Path(__file__).parents[3] / "shared" / "data"
NAME = "Dataset004_Hippocampus"
TEACHER = DATA / "teachers" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres"
CASES = ("hippocampus_001", "hippocampus_003", "hippocampus_007")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / NAME).is_dir() or not TEACHER.is_dir(), reason=f"no real data in {DATA}"),
]


def preprocessed(root, monkeypatch, **changes):
    """Preprocess some cases for a student, with some entries of the teacher's configuration changed."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        monkeypatch.setenv(name, str(root / name))
    (root / "nnUNet_raw" / NAME).symlink_to(DATA / NAME)
    folder = root / "nnUNet_preprocessed" / NAME
    plans = json.loads((TEACHER / "plans.json").read_text())
    plans.update({key: changes.pop(key) for key in ("transpose_forward", "transpose_backward") if key in changes})
    plans["configurations"]["3d_fullres"].update(changes)
    dataset = json.loads((TEACHER / "dataset.json").read_text())
    settings = PlansManager(plans).get_configuration("3d_fullres")
    (folder / settings.data_identifier).mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for case in CASES:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / settings.data_identifier / case),
            [str(DATA / NAME / "imagesTr" / f"{case}_0000.nii.gz")],
            str(DATA / NAME / "labelsTr" / f"{case}.nii.gz"),
            PlansManager(plans),
            settings,
            dataset,
        )
    return PreprocessedCases(folder, Experiment(plans, "3d_fullres", dataset))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing": [1.5, 1.5, 1.5]},
        {"spacing": [1.2, 0.8, 0.8], "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
    ],
)
def test_soft_labels_of_the_hippocampus(tmp_path, monkeypatch, changes):
    """They are nnU-Net's logits on the raw image's grid, transposed and resampled as nnU-Net resamples logits.

    Probabilities that are resampled instead differ a little more, because real logits are steep at the borders: the
    softmax before and after linear interpolation is not the same.
    """
    cases = preprocessed(tmp_path, monkeypatch, **changes)
    assert main(["soft-labels", "-d", "4", "--model", str(TEACHER), "--disable_tta", "-device", "cpu"]) == 0
    store = SoftLabelStore(cases.folder / "nnUNetPlans_3d_fullres_soft_model")
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(TEACHER), (0,))
    plans, settings = predictor.plans_manager, predictor.configuration_manager
    forward = PlansManager(cases.experiment.plans).transpose_forward
    for case in CASES:
        image = str(DATA / NAME / "imagesTr" / f"{case}_0000.nii.gz")
        data, _, noted = settings.preprocessor_class(verbose=False).run_case(
            [image], None, plans, settings, predictor.dataset_json
        )
        # the teacher was planned for the images as they are: its grid is that of the raw image, in the file's order
        assert data.shape[1:] == noted["shape_before_cropping"] and list(plans.transpose_forward) == [0, 1, 2]
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float().numpy()
        shape, placed = cases.placement(case)
        spacing = [placed["spacing"][axis] for axis in forward]

        def resampled(values, shape=shape, spacing=spacing):
            turned = values.transpose(0, *(axis + 1 for axis in forward))
            return cases.configuration.resampling_fn_probabilities(turned, shape, spacing, cases.configuration.spacing)

        found = softmax(store.open(case)[:].astype(np.float32))
        for what, expected, least in (
            ("logits", softmax(resampled(logits)), 0.9999),
            ("probabilities", resampled(softmax(logits)), 0.998),
        ):
            share, difference = (found.argmax(0) == expected.argmax(0)).mean(), np.abs(found - expected).max()
            print(f"{case}, {what} resampled: {100 * share:.3f} % of voxels, largest difference {difference:.4f}")
            assert share >= least
            if what == "logits" or not changes:
                assert difference <= 2e-3


def softmax(logits):
    return torch.softmax(torch.from_numpy(logits), 0).numpy()
