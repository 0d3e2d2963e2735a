"""Soft labels from raw images, each against nnU-Net's own way through probabilities of the whole raw image."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.teachers.bridges import LABELS, MODALITIES, REGIONS, Plan, channels_of, make_bridge

STUDENT = Plan()
TEACHER = Plan(name="Dataset602_Teacher")
MERGED = {"background": 0, "lesion": 1, "cyst": 2}
WITH_REGIONS = replace(TEACHER, labels=REGIONS, order=(1, 2, 3))


def probabilities(bridge, case="a", name="model"):
    logits = torch.from_numpy(bridge.store(name).open(case)[:].astype(np.float32))
    return (torch.sigmoid(logits) if bridge.student.order else torch.softmax(logits, 0)).numpy()


def agreement(found, expected, regions):
    """Return the share of voxels with the same labels or regions."""
    if regions:
        return float(((found > 0.5) == (expected > 0.5)).all(0).mean())
    return float((found.argmax(0) == expected.argmax(0)).mean())


MIDDLE = ((15, 40), (22, 65), (18, 62))  # voxels along z, y and x


def stripped(images):
    """Return images of which only the middle is left, so that they are cropped more."""
    kept = np.zeros_like(images)
    middle = (slice(None), *(slice(*limits) for limits in MIDDLE))
    kept[middle] = images[middle]
    return kept


def everywhere(images):
    """Return images whose last modality is nowhere zero, so that they are not cropped at all."""
    images = images.copy()
    images[2] += 0.1
    return images


def merged(p):
    return np.stack([p[0], p[1] + p[2], p[3]])


def dropped(p):
    return np.stack([p[0] + p[1] + p[2], p[3]])


def regions_of_labels(p):
    return np.stack([p[1] + p[2], p[2], p[3]])


def labels_of_regions(p):
    """Core and cyst lie over the tumour, and what is left of the tumour is oedema."""
    core, cyst = p[1], p[2]
    parts = [np.maximum(p[0] - core, 0), core, cyst]
    parts = np.stack([np.maximum(1 - sum(parts), 0), *parts])
    return parts / parts.sum(0)


CASES = {
    "spacing": (STUDENT, replace(TEACHER, spacing=(1.3, 1.2, 1.2)), (), None, None),
    "coarser student": (replace(STUDENT, spacing=(2.0, 1.5, 1.5)), TEACHER, (), None, None),
    "normalisation": (
        STUDENT,
        replace(TEACHER, normalization="CTNormalization", spacing=(1.4, 0.9, 0.9)),
        (),
        None,
        None,
    ),
    "axis order": (STUDENT, replace(TEACHER, transpose=(2, 0, 1), spacing=(1.1, 1.5, 0.9)), (), None, None),
    "axis order of the student": (
        replace(STUDENT, transpose=(1, 2, 0), spacing=(1.0, 1.0, 1.6)),
        replace(TEACHER, spacing=(1.5, 0.9, 1.1)),
        (),
        None,
        None,
    ),
    "crop of the model is larger, and it has more channels": (
        replace(STUDENT, channels=("FLAIR", "T1"), normalization="CTNormalization"),
        replace(TEACHER, normalization="CTNormalization", spacing=(1.4, 0.9, 0.9)),
        (),
        everywhere,
        None,
    ),
    "crop of the model is smaller": (
        STUDENT,
        replace(TEACHER, normalization="CTNormalization", spacing=(1.4, 0.9, 0.9)),
        (),
        stripped,
        None,
    ),
    "a 2d model": (STUDENT, replace(TEACHER, configuration="2d", spacing=(0.9, 0.9)), (), None, None),
    "a 2d student": (
        replace(STUDENT, configuration="2d", spacing=(1.0, 1.0)),
        replace(TEACHER, spacing=(1.0, 0.9, 0.9)),
        (),
        None,
        None,
    ),
    "a reader that reorients": (
        STUDENT,
        replace(TEACHER, reader="NibabelIOWithReorient", spacing=(1.4, 0.9, 0.9)),
        (),
        None,
        lambda p: p[:, :, ::-1, ::-1],
    ),
    "merged labels": (
        replace(STUDENT, labels=MERGED),
        replace(TEACHER, spacing=(1.4, 0.9, 0.9)),
        {"lesion": ["oedema", "core"]},
        None,
        merged,
    ),
    "dropped labels": (
        replace(STUDENT, labels={"background": 0, "cyst": 1}),
        replace(TEACHER, spacing=(1.4, 0.9, 0.9)),
        (),
        None,
        dropped,
    ),
    "labels to regions": (
        replace(STUDENT, labels=REGIONS, order=(1, 2, 3)),
        replace(TEACHER, spacing=(1.4, 0.9, 0.9)),
        {"tumour": ["oedema", "core"]},
        None,
        regions_of_labels,
    ),
    "regions to labels": (
        STUDENT,
        replace(WITH_REGIONS, spacing=(1.4, 0.9, 0.9)),
        {"oedema": ["tumour"]},
        None,
        labels_of_regions,
    ),
    "regions to regions": (
        replace(STUDENT, labels={"background": 0, "core": 1, "whole": [1, 2]}, order=(1, 2)),
        replace(WITH_REGIONS, spacing=(1.4, 0.9, 0.9)),
        {"whole": ["tumour"]},
        None,
        lambda p: p[[1, 0]],
    ),
    "an ignore label": (
        replace(STUDENT, labels={**LABELS, "ignore": 4}),
        replace(TEACHER, spacing=(1.4, 0.9, 0.9)),
        (),
        None,
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_bridge_is_nnunets_own_way(tmp_path, monkeypatch, name):
    student, teacher, words, change, mapping = CASES[name]
    bridge = make_bridge(tmp_path, student, monkeypatch, cases=("a",))
    if isinstance(words, dict):
        (tmp_path / "labels.json").write_text(json.dumps(words))
        words = ("--label-map", str(tmp_path / "labels.json"))
    images = bridge.raw / "imagesTr"
    if change is not None:
        images = channels_of(tmp_path / "changed", teacher.channels, change, ("a",))
        words = (*words, "-i", str(images))
    bridge.add_model(teacher)
    assert bridge.make("--model", teacher.folder, "--disable_tta", *words) == 0
    whole = bridge.whole(teacher, teacher.files(images, "a"))
    expected = bridge.on_student_grid(whole if mapping is None else mapping(whole), "a")
    found = probabilities(bridge)
    assert found.shape == expected.shape == (len(expected), *bridge.placement("a")[0])
    share, difference = agreement(found, expected, student.order), np.abs(found - expected).mean()
    print(f"{name}: {100 * share:.3f} % of voxels, mean difference of probabilities {difference:.5f}")
    assert share >= 0.999 and difference < 2e-3
    assert all((expected[k] > 0.5).sum() > 50 for k in range(len(expected)))  # every structure is there


@pytest.mark.slow
def test_the_students_own_model_gives_todays_soft_labels(tmp_path, monkeypatch):
    bridge = make_bridge(tmp_path, STUDENT, monkeypatch, cases=("a",))
    bridge.add_model(STUDENT)
    assert bridge.make("--teacher", "-f", "0", "--name", "today") == 0
    assert bridge.make("--model", STUDENT.folder) == 0
    difference = np.abs(probabilities(bridge) - probabilities(bridge, name="today"))
    print(f"largest difference of probabilities {difference.max():.2e}")
    assert difference.max() <= 1e-3


@pytest.mark.slow
def test_several_folds_are_averaged_as_nnunet_averages_them(tmp_path, monkeypatch):
    """The reference predicts with the folds' mean logits, mirrored, on the same grid: only rounding differs."""
    bridge = make_bridge(tmp_path, STUDENT, monkeypatch, cases=("a",))
    bridge.add_model(TEACHER, folds=(0, 3))
    assert bridge.make("--model", TEACHER.folder) == 0
    source = bridge.store().manifest["source"]
    assert source["folds_of_model"] == [0, 3] and set(source["checkpoint_sha256"]) == {"0", "3"}
    expected = bridge.on_student_grid(bridge.whole(TEACHER, TEACHER.files(bridge.raw / "imagesTr", "a"), True), "a")
    found = probabilities(bridge)
    assert agreement(found, expected, None) >= 0.998 and np.abs(found - expected).mean() < 2e-3
    assert bridge.make("--model", TEACHER.folder, "-f", "3", "--name", "three") == 0
    assert agreement(probabilities(bridge, name="three"), expected, None) < agreement(found, expected, None)


def test_voxels_outside_the_models_crop_are_background(tmp_path, monkeypatch):
    student = replace(STUDENT, spacing=(3.0, 2.5, 2.5))
    teacher = replace(TEACHER, spacing=(3.0, 2.5, 2.5))
    bridge = make_bridge(tmp_path, student, monkeypatch, cases=("a",))
    images = channels_of(tmp_path / "stripped", MODALITIES, stripped, ("a",))
    bridge.add_model(teacher)
    assert bridge.make("--model", teacher.folder, "--disable_tta", "-i", str(images)) == 0
    found = probabilities(bridge)
    shape, noted = bridge.placement("a")
    inside = []
    for axis, (first, last) in enumerate(MIDDLE):
        step = noted["shape_after_cropping_and_before_resampling"][axis] / shape[axis]
        place = (np.arange(shape[axis]) + 0.5) * step + noted["bbox_used_for_cropping"][axis][0]
        inside.append((place >= first) & (place < last))
    outside = np.ones(shape, bool)
    outside[np.ix_(*inside)] = False
    assert 0.2 < outside.mean() < 0.9
    assert (found[0][outside] > 1 - 1e-6).all() and (found[0][~outside] < 1 - 1e-6).all()
