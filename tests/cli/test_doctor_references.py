"""Doctor counts the cases without a reference and checks that the student can learn from them."""

import json

import pytest

from nnunet_kd.cli import main
from tests.training.unlabelled_cases import forget_labels, split

OF_ALL = "6 of 6 cases have no reference"


@pytest.fixture
def doctor(workspace, capsys):
    """Return a function that runs ``doctor`` and returns its lines on references, and its exit status."""

    def run(trainer="nnUNetTrainerSoftKD"):
        capsys.readouterr()
        status = main(["doctor", "-d", "598", "-tr", trainer])
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "reference" in line], status

    return run


def test_nothing_is_said_if_every_case_has_a_reference(workspace, doctor):
    forget_labels(workspace, [])
    assert doctor() == ([], 0)


def test_unlabelled_cases_with_soft_labels(workspace, doctor):
    forget_labels(workspace, split(workspace)[0][:1])
    assert doctor() == (["ok    1 of 6 cases has no reference, but all of them have soft labels 'model'"], 0)


def test_unlabelled_cases_without_soft_labels(workspace, doctor):
    store, _ = forget_labels(workspace)
    validation = split(workspace)[1][0]
    store.path(validation).unlink()
    expected = (
        f"FAIL  {OF_ALL}, and 1 of them, such as {validation}, have no soft labels 'model'. Fix: nnunet_kd soft-labels "
        "-d Dataset598_TinyHeads -c 3d_fullres -p nnUNetPlans "
    )
    [line], status = doctor()
    assert line.startswith(expected) and line.endswith(" --name model --continue") and status == 1
    for path in store.folder.glob("*.b2nd"):
        path.unlink()
    assert doctor() == ([f"ok    {OF_ALL}: they need soft labels"], 1)  # another line says that there are none


def test_trainers_that_read_no_soft_labels(workspace, doctor):
    forget_labels(workspace, split(workspace)[0][:2])
    found = "2 of 6 cases have no reference, and nnUNetTrainerKD learns nothing from them (nnUNetTrainerSoftKD does)"
    assert doctor("nnUNetTrainerKD") == ([f"ok    {found}"], 0)


def test_a_trainer_that_could_learn_nothing_at_all(workspace, doctor):
    forget_labels(workspace)
    expected = f"FAIL  {OF_ALL}, and nnUNetTrainerNoKD reads no soft labels. Fix: train with -tr nnUNetTrainerSoftKD"
    assert doctor("nnUNetTrainerNoKD") == ([expected], 1)


def test_a_normalisation_that_predictions_do_not_have(workspace, doctor):
    forget_labels(workspace, split(workspace)[0][:1])
    path = workspace.preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True] * 3
    path.write_text(json.dumps(plans))
    lines, status = doctor()
    assert (
        status == 1 and "FAIL  1 of 6 cases has no reference, and 1 of them have the ignore label outside" in lines[0]
    )
