"""Folders of segmentations by two methods, and their references."""

import json

import numpy as np
import pytest

from tests.evaluation.segmentations import description, random_labels, write


@pytest.fixture
def folders(tmp_path):
    """Create four cases of two methods, with references and a description."""
    for case in range(4):
        truth = random_labels(case)
        write(tmp_path / "ref" / f"c{case}.nii.gz", truth)
        for number, method in enumerate(("one", "two")):
            noisy = np.where(np.random.default_rng(case).random(truth.shape) < 0.1 * (number + 1), 0, truth)
            write(tmp_path / method / f"c{case}.nii.gz", noisy)
    empty = np.zeros((6, 11, 9))
    write(tmp_path / "ref" / "d.nii.gz", empty)
    write(tmp_path / "one" / "d.nii.gz", empty)
    write(tmp_path / "two" / "d.nii.gz", np.where(random_labels(9) == 1, 1, 0))
    (tmp_path / "dataset.json").write_text(json.dumps(description()))
    return tmp_path
