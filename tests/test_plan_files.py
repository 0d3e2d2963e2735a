import json
from pathlib import Path

import pytest

import nnunet_kd.plans
from nnunet_kd.evaluation.cost import configuration_cost
from nnunet_kd.planning import student_plans

FOLDER = Path(next(iter(nnunet_kd.plans.__path__)))
DATASETS = {
    "Dataset501_BraTS2024GLI": (4, 5, 101.945, 6.381),
    "Dataset502_ISLES2022": (3, 2, 102.351, 6.406),
}


@pytest.mark.parametrize("name", DATASETS)
def test_parameters_are_those_of_table_3(name):
    channels, labels, teacher, student = DATASETS[name]
    dataset_json = {
        "channel_names": {str(i): str(i) for i in range(channels)},
        "labels": {"background": 0, **{str(i): i for i in range(1, labels)}},
    }
    for file, millions in (("nnUNetResEncUNetPlans", teacher), ("nnUNetResEncUNetPlans_r4", student)):
        plans = json.loads((FOLDER / name / f"{file}.json").read_text())
        assert plans["plans_name"] == file and plans["dataset_name"] == name
        cost = configuration_cost(plans, "3d_fullres", dataset_json)
        assert round(cost.parameters / 1e6, 3) == millions


@pytest.mark.parametrize("name", DATASETS)
def test_student_is_the_reduced_teacher(name):
    teacher, student = (
        json.loads((FOLDER / name / f"nnUNetResEncUNetPlans{suffix}.json").read_text()) for suffix in ("", "_r4")
    )
    assert student == student_plans(teacher, 4, name="nnUNetResEncUNetPlans_r4")
