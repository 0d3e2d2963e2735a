"""Synapse has 13 organs or 8."""

import json

import numpy as np

from tests.datasets.converting import convert, read


def test_organs_have_the_challenges_numbers(converted):
    _, made = converted
    labels = json.loads((made["Synapse"].folder / "dataset.json").read_text())["labels"]
    assert labels == {
        "background": 0,
        "spleen": 1,
        "right kidney": 2,
        "left kidney": 3,
        "gallbladder": 4,
        "oesophagus": 5,
        "liver": 6,
        "stomach": 7,
        "aorta": 8,
        "inferior vena cava": 9,
        "portal and splenic veins": 10,
        "pancreas": 11,
        "right adrenal gland": 12,
        "left adrenal gland": 13,
    }


def test_eight_organs(converted, tmp_path):
    root, made = converted
    eight = convert("Synapse", root / "Synapse", tmp_path, organs=8)
    names = json.loads((eight.folder / "dataset.json").read_text())["labels"]
    published = json.loads((made["Synapse"].folder / "dataset.json").read_text())["labels"]
    all_organs, _ = read(made["Synapse"].folder / "labelsTr" / "synapse_0002.nii.gz")
    ours, _ = read(eight.folder / "labelsTr" / "synapse_0002.nii.gz")
    assert len(names) == 9 and len(published) == 14
    for organ, number in names.items():
        if number:
            np.testing.assert_array_equal(ours == number, all_organs == published[organ])
    assert (ours > 0).sum() < (all_organs > 0).sum()
