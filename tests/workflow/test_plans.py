"""The plans of a student whose teacher was trained on other data."""

import pytest

from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.workflow.plans import NAME, Student, plans_of_student


@pytest.fixture
def plan(workspace, tmp_path):
    teacher = Experiment.of_results(workspace.teacher)

    def make(trust=False, **wanted):
        student = Student(**{"reduction": 4, **wanted})
        arguments = (workspace.teacher, 0, {"num_epochs": 3}, {"soft_labels": "teacher"})
        return teacher.plans, plans_of_student(teacher, "Dataset001_X", "NibabelIO", student, *arguments, trust)

    return make


def test_a_student_has_its_teachers_preprocessing(plan):
    teacher, student = plan()
    assert [*student["configurations"]] == ["3d_fullres"] and student["plans_name"] == NAME
    theirs, ours = teacher["configurations"]["3d_fullres"], dict(student["configurations"]["3d_fullres"])
    widths = theirs["architecture"]["arch_kwargs"]["features_per_stage"]
    assert ours["architecture"]["arch_kwargs"]["features_per_stage"] == [width // 4 for width in widths]
    for key in ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm"):
        assert ours[key] == theirs[key]
    assert student["image_reader_writer"] == "NibabelIO" and student["dataset_name"] == "Dataset001_X"
    assert student["nnunet_kd"]["teacher"]["folds"] == [0]
    assert student["nnunet_kd"]["method"] == {"soft_labels": "teacher"}


def test_a_student_of_some_channels(plan):
    teacher, student = plan(channels=[2, 0])
    intensities = teacher["foreground_intensity_properties_per_channel"]
    assert student["foreground_intensity_properties_per_channel"] == {"0": intensities["2"], "1": intensities["0"]}
    assert len(student["configurations"]["3d_fullres"]["normalization_schemes"]) == 2
    assert student["nnunet_kd"]["teacher"]["channels"] == [2, 0]


def test_a_student_of_larger_voxels(plan):
    teacher, student = plan(spacing=[5.0, 2.4, 2.6])
    theirs, ours = (plans["configurations"]["3d_fullres"] for plans in (teacher, student))
    assert ours["spacing"] == [[5.0, 2.4, 2.6][axis] for axis in teacher["transpose_forward"]]
    strides = ours["architecture"]["arch_kwargs"]["strides"]
    for axis in range(3):
        divisor = 1
        for stride in strides:
            divisor *= stride[axis]
        assert ours["patch_size"][axis] % divisor == 0 and ours["patch_size"][axis] >= 2 * divisor
        assert ours["patch_size"][axis] <= max(theirs["patch_size"][axis], 2 * divisor)


@pytest.mark.parametrize("trust", [False, True])
def test_the_training_trusts_a_teacher_that_the_user_trusts(plan, trust):
    assert plan(trust=trust)[1]["nnunet_kd"]["teacher"].get("trust_checkpoint", False) is trust


def test_a_spacing_that_does_not_fit(plan):
    with pytest.raises(ValueError, match=r"the spacing must be 3 lengths in mm, as the model's .*, got 2 2"):
        plan(spacing=[2.0, 2.0])
    with pytest.raises(ValueError, match=r"got 2 0 2"):
        plan(spacing=[2.0, 0.0, 2.0])
