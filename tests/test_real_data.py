"""Tests with real teachers, if they lie beside the checkout; all other tests use synthetic data."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from scipy.ndimage import binary_erosion

from nnunet_kd.evaluation.metrics import surface_metrics
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.training.preparation import prepare
from nnunet_kd.training.sources import attach_teacher
from tests.evaluation.brute_force import brute_force

LABELS = Path(__file__).parents[2] / "shared" / "data" / "Dataset004_Hippocampus" / "labelsTr"
TEACHERS = Path(__file__).parents[2] / "shared" / "data" / "teachers"

pytestmark = pytest.mark.skipif(not TEACHERS.is_dir(), reason=f"no real teachers in {TEACHERS}")


@pytest.mark.parametrize(("dataset", "channels"), [("Dataset004_Hippocampus", 1), ("Dataset021_BraTSPatches", 4)])
def test_a_real_teacher_teaches(dataset, channels):
    """A real teacher is read without running code and fits, and its features give a finite loss with gradients."""
    folder = TEACHERS / dataset / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    plans = student_plans(json.loads((folder / "plans.json").read_text()), 4)
    plans["nnunet_kd"]["teacher"] = {"folder": str(folder)}
    student = Experiment(plans, "3d_fullres", json.loads((folder / "dataset.json").read_text()))
    preparation = prepare(nnUNetTrainerDCD, student, 0)
    attached = attach_teacher(nnUNetTrainerDCD, preparation)
    assert attached.leakage is None
    widths = attached.teacher.stages.widths
    assert widths[0] == 32 and len(attached.stages) == len(widths)

    patch = plans["configurations"]["3d_fullres"]["patch_size"]
    _, taught = attached.teacher(torch.randn(1, channels, *patch))
    (term,) = preparation.terms
    loss = torch.tensor(0.0)
    for features in taught:
        narrow = torch.randn(1, features.shape[1] // 4, *features.shape[2:], requires_grad=True)
        phi = term.loss.projection(narrow.shape[1], features.shape[1], 3)
        loss = loss + term.loss(narrow, features, phi)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0 and torch.isfinite(narrow.grad).all()


@pytest.mark.skipif(not LABELS.is_dir(), reason=f"no real labels in {LABELS}")
def test_surface_metrics_of_real_shapes_against_brute_force():
    """Compare hippocampi with shifted and eroded copies of themselves, at a spacing of the test's own."""
    for path in sorted(LABELS.glob("*.nii.gz"))[:4]:
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        for value in (1, 2):
            reference = labels == value
            prediction = np.roll(binary_erosion(reference), (1, 0, 2), (0, 1, 2))
            hd95, nsd = brute_force(reference, prediction, (2.0, 1.0, 0.7), 1.5)
            found = surface_metrics(reference, prediction, (2.0, 1.0, 0.7), 1.5)
            assert found["hd95"] == pytest.approx(hd95, rel=1e-6) and found["nsd"] == pytest.approx(nsd)
