"""Which preprocessed cases have no reference."""

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_kd.nnunet.unlabelled import (
    empty_reference,
    has_reference,
    normalised_with_outside,
    without_reference,
)

IGNORE = 3
LABELS = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=True)
ANNOTATED = (-1, 0, 1, 2)


def case(segmentation, recorded=True):
    """Return a preprocessed case as nnU-Net loads it, with or without a record of the annotated voxels."""
    classes = [1, 2, *([ANNOTATED] if recorded else [])]
    found = DefaultPreprocessor._sample_foreground_locations(segmentation, classes)
    return np.zeros((1, *segmentation.shape[1:])), segmentation, None, {"class_locations": found}


def filled(**voxels):
    """Return labels that are ignored everywhere except in one plane for each value."""
    made = np.full((1, 4, 5, 6), IGNORE, np.int16)
    for plane, value in enumerate(voxels.values()):
        made[0, plane] = value
    return made


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (filled(), False),
        (filled(outside=-1), False),  # outside the body nothing has been annotated
        (filled(background=0), True),
        (filled(outside=-1, background=0), True),
        (filled(foreground=2), True),
        (filled(outside=-1, foreground=1), True),
    ],
    ids=["ignored", "ignored, outside", "background", "background, outside", "foreground", "foreground, outside"],
)
def test_a_case_has_a_reference_if_any_voxel_of_the_body_has_a_label(segmentation, expected, recorded):
    _, segmentation, _, properties = case(segmentation, recorded)
    assert has_reference(segmentation, properties, LABELS) == expected
    assert has_reference(segmentation, {}, LABELS) == expected


def test_regions_have_locations_of_tuples():
    segmentation = filled(foreground=2)
    found = DefaultPreprocessor._sample_foreground_locations(segmentation, [(1, 2), 2, ANNOTATED])
    assert has_reference(None, {"class_locations": found}, LABELS)  # the segmentation need not be read


class Cases(dict):
    """Preprocessed cases by name."""

    identifiers = property(list)
    load_case = dict.__getitem__


def test_without_an_ignore_label_every_case_has_a_reference():
    cases = Cases(a=case(filled()), b=case(filled(foreground=1)))
    assert without_reference(cases, LABELS) == ["a"]
    assert without_reference(cases, LABELS, ["b"]) == []
    assert without_reference(cases, SimpleNamespace(has_ignore_label=False)) == []


def test_an_empty_reference_is_normalised_as_in_prediction(workspace):
    """The ignore label outside the body would make nnU-Net normalise over the whole image."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = workspace.plans("nnUNetPlans")
    content = plans["configurations"]["3d_fullres"]
    content["use_mask_for_norm"] = [True] * 3
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    labels = {"background": 0, "oedema": 1, "enhancing": 2, "ignore": IGNORE}
    dataset_json = {**workspace.dataset_json, "labels": labels}
    images = np.random.default_rng(0).normal(5, 1, (3, 12, 20, 18)).astype(np.float32)
    images[:, :, :, 10:] = 0
    images[:, 2:, -1, 17] = 1  # nnU-Net would crop what is 0 alone
    images[:, 3:6, 4:8, 3:7] = 0  # a hole in the body, which nnU-Net fills

    def preprocessed(segmentation):
        properties = {"spacing": configuration.spacing}
        made = DefaultPreprocessor(verbose=False).run_case_npy(
            images, segmentation, properties, manager, configuration, dataset_json
        )
        return made[0], made[1], None, made[2]

    predicted = preprocessed(None)[0]
    reference = empty_reference(images, IGNORE)
    assert reference.dtype == np.int16 and {*np.unique(reference)} == {0, IGNORE}
    written = preprocessed(reference[None])
    everywhere = preprocessed(np.full((1, *images.shape[1:]), IGNORE, np.int16))
    np.testing.assert_allclose(written[0], predicted, atol=1e-5)
    assert np.abs(everywhere[0] - predicted).max() > 0.5
    cases = Cases(written=written, everywhere=everywhere)
    label_manager = manager.get_label_manager(dataset_json)
    assert without_reference(cases, label_manager) == ["written", "everywhere"]
    assert normalised_with_outside(cases, label_manager, list(cases), configuration) == ["everywhere"]
    content["use_mask_for_norm"] = [False] * 3
    plain = PlansManager(plans).get_configuration("3d_fullres")
    assert normalised_with_outside(cases, label_manager, list(cases), plain) == []
