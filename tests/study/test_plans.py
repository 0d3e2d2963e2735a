"""The plans of a row with another network."""

import json

import pytest

from nnunet_kd.study.plans import plans_of_run
from nnunet_kd.study.runs import MethodRow, OtherNetwork, list_runs


def run_with(**network):
    row = MethodRow("mine", "nnUNetTrainerNoKD", "_mine", {}, OtherNetwork(**network))
    return list_runs("small", [row], [0], [3])[0]


def architecture(plans, configuration="3d_fullres"):
    return plans["configurations"][configuration]["architecture"]


def test_a_network_has_the_widths_of_the_students_plans(workspace):
    plans = workspace.plans("small", student={"source_plans": "nnUNetPlans", "reduction": 2})
    widths = [16, 24, 40]
    architecture(plans)["arch_kwargs"]["features_per_stage"] = widths
    before = json.dumps(plans)
    derived = plans_of_run(run_with(name="dra_unet", arch_kwargs={"attention": False}), plans, "3d_fullres", False)
    assert architecture(derived)["network_class_name"].endswith("DRAUNet")
    assert architecture(derived)["arch_kwargs"]["features_per_stage"] == widths
    assert architecture(derived)["arch_kwargs"]["attention"] is False
    assert derived["nnunet_kd"]["student"] == plans["nnunet_kd"]["student"]
    assert derived["nnunet_kd"]["teacher"]["plans"] == "nnUNetPlans"
    assert derived["plans_name"] == "small_mine_seed3" and derived["nnunet_kd"]["training"]["seed"] == 3
    assert json.dumps(plans) == before


def test_without_a_student_a_network_is_reduced_as_usual(workspace):
    plans = workspace.plans("small")
    derived = plans_of_run(run_with(name="dra_unet"), plans, "3d_fullres", False)
    assert architecture(derived)["arch_kwargs"]["features_per_stage"] == [8, 16, 32]
    assert derived["nnunet_kd"]["student"]["source_plans"] == "small"


def test_a_network_of_a_library_replaces_another_one(workspace):
    plans = workspace.plans("small")
    first = plans_of_run(run_with(name="monai.UNet", arch_kwargs={"num_res_units": 1}), plans, "3d_fullres", False)
    again = plans_of_run(run_with(name="monai.UNet"), first | {"plans_name": "small"}, "3d_fullres", False)
    assert architecture(again) == architecture(first)
    other = plans_of_run(run_with(name="monai.UNETR"), first | {"plans_name": "small"}, "3d_fullres", False)
    assert architecture(other)["arch_kwargs"]["network"] == "monai.UNETR"


def test_keywords_of_an_inherited_network(workspace):
    plans = workspace.plans("small")
    plans["configurations"]["large"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    derived = plans_of_run(run_with(arch_kwargs={"n_conv_per_stage": [1, 1, 1]}), plans, "large", False)
    assert architecture(derived)["arch_kwargs"]["n_conv_per_stage"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("network", "configuration", "message"),
    [
        ({"name": "vm_unet"}, "3d_fullres", "unknown key '3d_fullres' in the configurations of mine"),
        ({"arch_kwargs": {"n_stages": 2}}, "3d_ful", "unknown key '3d_ful' in the configurations of mine: did you"),
    ],
)
def test_a_network_that_cannot_be_had(workspace, network, configuration, message):
    with pytest.raises(ValueError, match=message):
        plans_of_run(run_with(**network), workspace.plans("small"), configuration, False)
