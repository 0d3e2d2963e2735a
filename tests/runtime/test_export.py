"""Labels and probabilities are those of nnU-Net's export, although logits arrive slab by slab."""

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from nnunet_kd.runtime.export import LabelAssembly
from nnunet_kd.runtime.plans import read_pipeline
from nnunet_kd.runtime.preprocessing import Grid
from nnunet_kd.runtime.probabilities import ProbabilityFile
from nnunet_kd.runtime.resampling import resampled_shape
from tests.runtime.made_plans import LOGITS, make_dataset_json, make_plans

LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
ORDER = {"regions_class_order": [1, 2, 3]}
MANY = {"background": 0, **{f"label {value}": value for value in range(1, 257)}}


def smooth(shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return ndimage.gaussian_filter(values, (0, *[1.5] * 3)) * 20


def both(plans, dataset_json, spacing, cropped, margins, tmp_path, logits=None):
    """Return our labels and probabilities, and nnU-Net's, of random logits."""
    pipeline = read_pipeline(plans, dataset_json, "made", Path("model"))
    transpose = pipeline.transpose
    ordered = [spacing[axis] for axis in transpose]
    model = (ordered[0], *pipeline.spacing) if len(pipeline.spacing) == 2 else pipeline.spacing
    box = tuple((first, first + size) for (first, _), size in zip(margins, cropped, strict=True))
    whole = tuple(size + sum(margin) for size, margin in zip(cropped, margins, strict=True))
    grid = Grid(tuple(spacing), whole, box, transpose, model)
    shape = resampled_shape(cropped, ordered, model) if pipeline.logits_resampling.active else cropped
    if logits is None:
        logits = smooth((pipeline.labels.heads, *shape))
    manager = PlansManager(plans)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.copy(),
        manager,
        manager.get_configuration("made"),
        manager.get_label_manager(dataset_json),
        {**grid.properties(), "spacing": list(spacing)},
        return_probabilities=True,
        num_threads_torch=1,
    )
    (tmp_path / "scratch").mkdir(exist_ok=True)
    file = ProbabilityFile(tmp_path / "scratch", grid, pipeline.labels)
    found = []
    for sink in (file.add, None):
        assembly = LabelAssembly(shape, grid, pipeline.labels, pipeline.logits_resampling, sink)
        generator, first = np.random.default_rng(1), 0
        while first < shape[0]:
            after = first + int(generator.integers(1, 5))
            slab = logits[:, first:after].copy()
            assembly.add(slab)
            slab[:] = np.nan  # a slab is valid only until the next
            first = after
        found.append(assembly.result())
    np.testing.assert_array_equal(*found)
    file.write(tmp_path / "case.npz")
    file.close()
    assert not list((tmp_path / "scratch").iterdir())
    return found[0], np.load(tmp_path / "case.npz")["probabilities"], *expected


def check(*arguments, **options):
    labels, probabilities, their_labels, their_probabilities = both(*arguments, **options)
    assert labels.dtype == their_labels.dtype and labels.shape == their_labels.shape
    assert (labels == their_labels).mean() >= 0.9999
    assert probabilities.dtype == their_probabilities.dtype
    np.testing.assert_allclose(probabilities, their_probabilities, atol=1e-5)
    assert len(np.unique(labels)) > 2


MARGINS = ((1, 2), (0, 3), (4, 0))


@pytest.mark.parametrize(("labels", "order"), [(LABELS, {}), (REGIONS, ORDER)])
@pytest.mark.parametrize(
    ("spacing", "model"),
    [
        ((1.5, 0.8, 0.8), [1.0, 1.0, 1.0]),
        ((0.8, 0.8, 0.8), [1.5, 1.5, 1.5]),
        ((5.0, 0.9, 0.9), [4.0, 1.1, 1.1]),
        ((1.0, 1.0, 1.0), [5.0, 0.8, 0.8]),
        ((0.9, 5.0, 0.9), [1.0, 4.0, 1.0]),
        ((0.9, 0.9, 5.0), [1.0, 1.0, 3.9]),
        ((3.0, 1.0, 1.0), [0.7, 0.9]),
        ((1.0, 1.0, 1.0), [1.0, 1.0, 1.0]),
        ((0.5, 1.0, 1.0), [3.0, 1.0, 1.0]),
    ],
)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_labels_and_probabilities(labels, order, spacing, model, transpose, tmp_path):
    ordered = tuple(spacing[axis] for axis in np.argsort(transpose))
    plans = make_plans(model, ["NoNormalization"], transpose=transpose)
    check(plans, make_dataset_json(1, labels, **order), ordered, (12, 15, 14), MARGINS, tmp_path)


def test_regions_overlap_in_the_given_order(tmp_path):
    plans = make_plans([1, 1, 1], ["NoNormalization"])
    for order in ([1, 2, 3], [3, 1, 2]):
        dataset_json = make_dataset_json(1, REGIONS, regions_class_order=order)
        check(plans, dataset_json, (0.7, 1, 1.2), (9, 8, 7), MARGINS, tmp_path)


def test_an_ignore_label_has_no_logits(tmp_path):
    plans = make_plans([1, 1, 1], ["NoNormalization"])
    dataset_json = make_dataset_json(1, {**LABELS, "ignore": 4})
    check(plans, dataset_json, (0.7, 1, 1.2), (9, 8, 7), MARGINS, tmp_path)


def test_more_than_254_structures(tmp_path):
    plans = make_plans([1, 1, 1], ["NoNormalization"])
    check(plans, make_dataset_json(1, MANY), (0.7, 1, 1.2), (5, 4, 6), MARGINS, tmp_path)


@pytest.mark.parametrize(
    "settings_", [{"order": 0}, {"order_z": 1, "force_separate_z": True}, {"force_separate_z": False}]
)
def test_other_settings_of_resampling(settings_, tmp_path):
    plans = make_plans([4.0, 1.1, 1.1], ["NoNormalization"], resampling_fn_probabilities_kwargs={**LOGITS, **settings_})
    check(plans, make_dataset_json(1, LABELS), (6.0, 0.9, 0.9), (7, 12, 11), MARGINS, tmp_path)


def test_no_resampling(tmp_path):
    names = dict.fromkeys(
        ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"), "no_resampling_hack"
    )
    nothing = {f"{name}_kwargs": {} for name in names}
    plans = make_plans([9.0, 9.0, 9.0], ["NoNormalization"], **names, **nothing)
    check(plans, make_dataset_json(1, LABELS), (1, 1, 1), (7, 8, 9), MARGINS, tmp_path)
