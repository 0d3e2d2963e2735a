"""The teacher's segmentations with the student's labels."""

import numpy as np
import pytest

from nnunet_kd.teachers.mapping import LabelMap
from nnunet_kd.workflow.segmentations import with_labels_of_student

LABELS = {"labels": {"background": 0, "left": 1, "right": 2, "lesion": 3}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "cyst": 3}, "regions_class_order": [1, 2, 3]}


def student(*names):
    return {"labels": {"background": 0, **{name: value for value, name in enumerate(names, 1)}}}


@pytest.mark.parametrize(
    ("teacher", "label_map", "expected"),
    [
        (LABELS, {"left": ["left"], "right": ["right"], "lesion": ["lesion"]}, [0, 1, 2, 3]),
        (LABELS, {"lesion": ["lesion"], "side": ["left", "right"]}, [0, 2, 2, 1]),
        (LABELS, {"right": ["right"]}, [0, 0, 1, 0]),
        (REGIONS, {"core": ["core"]}, [0, 0, 1, 1]),
        (REGIONS, {"core": ["core"], "rest": ["whole"]}, [0, 2, 1, 1]),
    ],
)
def test_labels_of_the_student(teacher, label_map, expected):
    found = LabelMap.of(label_map, teacher, student(*label_map))
    np.testing.assert_array_equal(with_labels_of_student(np.arange(4).reshape(1, 2, 2), found).ravel(), expected)
