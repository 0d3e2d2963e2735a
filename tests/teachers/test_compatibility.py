"""A teacher that does not match its student is refused in one sentence, before the results folder is created."""

import json

from tests.conftest import SHORT
from tests.teachers.refused import edit, edit_configuration, refused


def test_wrong_number_of_channels(workspace):
    edit(workspace.teacher / "dataset.json", channel_names={"0": "T1"})
    refused(workspace, ValueError, "its number of input channels is 1, the student's 3")


def test_other_channels(workspace):
    edit(workspace.teacher / "dataset.json", channel_names={"0": "T1", "1": "FLAIR", "2": "T1C"})
    refused(workspace, ValueError, "its list of input channels is")


def test_other_labels(workspace):
    edit(workspace.teacher / "dataset.json", labels={"background": 0, "enhancing": 1, "oedema": 2})
    refused(workspace, ValueError, "its label list is .*'enhancing': 1")


def test_regions_in_another_order(workspace):
    """The order of the regions is that of the network's output channels."""
    labels = {"background": 0, "whole": [1, 2], "enhancing": 2}
    swapped = {"background": 0, "enhancing": 2, "whole": [1, 2]}
    edit(workspace.teacher / "dataset.json", labels=swapped, regions_class_order=[1, 2])
    edit(workspace.preprocessed / "dataset.json", labels=labels, regions_class_order=[1, 2])
    refused(workspace, ValueError, "its label list is .*enhancing.*whole.*, the student's .*whole.*enhancing")


def test_other_spacing(workspace):
    edit_configuration(workspace, spacing=[2.5, 2.0, 1.3])
    refused(workspace, ValueError, r"its spacing \(mm\) is \[2.5, 2.0, 1.3\], the student's \[2.5, 1.2")


def test_other_normalisation(workspace):
    edit_configuration(workspace, normalization_schemes=["NoNormalization"] * 3)
    refused(workspace, ValueError, "its intensity normalisation is .*NoNormalization.*the student's .*ZScore")


def test_other_axis_order(workspace):
    edit(workspace.teacher / "plans.json", transpose_forward=[2, 1, 0])
    refused(workspace, ValueError, r"its axis order is \[2, 1, 0\]")


def test_ct_needs_the_same_intensity_statistics(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    schemes = ["CTNormalization", "ZScoreNormalization", "ZScoreNormalization"]
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = schemes
    edit_configuration(workspace, normalization_schemes=schemes)
    statistics = json.loads((workspace.teacher / "plans.json").read_text())[
        "foreground_intensity_properties_per_channel"
    ]
    statistics["0"]["mean"] += 50
    edit(workspace.teacher / "plans.json", foreground_intensity_properties_per_channel=statistics)
    refused(workspace, ValueError, "its intensity statistics of channel 0 is", plans)


def test_a_patch_that_the_teacher_cannot_process(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    plans["configurations"]["3d_fullres"]["patch_size"] = [13, 20, 16]
    refused(
        workspace,
        ValueError,
        r"the student's patch size \[13, 20, 16\] cannot be divided by the teacher's strides",
        plans,
    )
