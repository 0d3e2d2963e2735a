"""A data set of small RGB pictures with two kinds of spots on skin."""

import json

import numpy as np

from nnunet_kd.datasets.pictures import write_picture

LABELS = {"background": 0, "dark": 1, "red": 2}


def make_picture(generator, height, width):
    """Return a picture ``(y, x, 3)`` and its labels ``(y, x)``, both uint8."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.array([210.0, 170, 150]) + 20 * np.sin(columns / 9 + generator.uniform(0, 6))[..., None]
    labels = np.zeros((height, width), np.uint8)
    for label, colour in ((1, (70, 40, 30)), (2, (190, 40, 50))):
        centre = generator.uniform(0.25, 0.75, 2) * (height, width)
        radii = generator.uniform(5, 9, 2)
        spot = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
        picture[spot], labels[spot] = colour, label
    return np.clip(picture + generator.normal(0, 6, picture.shape), 0, 255).astype(np.uint8), labels


def make_pictures(folder, training, test, seed=0):
    """Write pictures in nnU-Net's raw format, with channels that nnU-Net scales from 0..255 to 0..1."""
    generator = np.random.default_rng(seed)
    for index in range(training + test):
        split = "Tr" if index < training else "Ts"
        picture, labels = make_picture(generator, 44 + 4 * (index % 3), 56)
        for kind, array, ending in (("images", picture, "_0000"), ("labels", labels, "")):
            (folder / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
            write_picture(array, folder / f"{kind}{split}" / f"skin_{index:03d}{ending}.png")
    description = {
        "channel_names": {str(channel): "rgb_to_0_1" for channel in range(3)},
        "labels": LABELS,
        "numTraining": training,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
