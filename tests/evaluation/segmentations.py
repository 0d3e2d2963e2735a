"""Write small segmentations and references to files, and define their evaluation."""

import numpy as np
import SimpleITK

from nnunet_kd.cli import main
from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation

LABELS = {"background": 0, "a": 1, "b": 2}
SPACING = (2.5, 1.2, 0.8)


def write(path, labels, spacing=SPACING):
    image = SimpleITK.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing[::-1][: labels.ndim])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def random_labels(seed, shape=(6, 11, 9)):
    """Create blobs of two labels."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.2)
    return np.digitize(noise, [0.1, 0.3])


def description(**changes):
    return {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "T1"}, "numTraining": 4, **changes}


def evaluated(folder, workers=1, **changes):
    evaluation = read_evaluation(description(**changes), None, folder / "ref" / "c0.nii.gz")
    predictions = {"one": folder / "one", "two": folder / "two"}
    return evaluate_folders(folder / "ref", predictions, evaluation, workers)


def command(folders, *more, predictions=("one", "two")):
    words = ["evaluate", "-ref", str(folders / "ref"), "-djfile", str(folders / "dataset.json")]
    words += ["-o", str(folders / "out")]
    for name in predictions:
        words += ["-pred", str(folders / name)]
    return main([*words, "-np", "1", *more])
