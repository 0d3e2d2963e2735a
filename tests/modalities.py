"""A data set of small brains in four modalities, with a lesion that no single modality shows completely."""

import json

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

CHANNELS = ("T1", "T2", "T1CE", "FLAIR")
LABELS = {"background": 0, "oedema": 1, "core": 2}


def make_brain(generator, shape=(5, 40, 36)):
    """Return images ``(4, z, y, x)`` and labels ``(z, y, x)``: T2 and FLAIR show oedema, T1CE and T2 the core."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    brain = (y / 0.9) ** 2 + (x / 0.85) ** 2 < 1
    centre = generator.uniform(-0.35, 0.35, 2)
    radius = generator.uniform(0.35, 0.45)
    distance = np.sqrt(0.1 * z**2 + (y - centre[0]) ** 2 + (x - centre[1]) ** 2)
    labels = np.zeros(shape, np.uint8)
    labels[(distance < radius) & brain] = 1
    labels[(distance < 0.5 * radius) & brain] = 2
    images = np.zeros((4, *shape), np.float32)
    for channel, (tissue, oedema, core) in enumerate([(1, 0.8, 0.7), (0.6, 1.2, 1.3), (1, 0.9, 1.9), (0.7, 1.5, 0.8)]):
        image = np.where(brain, tissue, 0.0)
        image[labels == 1], image[labels == 2] = oedema, core
        texture = gaussian_filter(generator.normal(size=shape), 2)
        images[channel] = image + brain * (texture + generator.normal(0, 0.05, shape))
    return 100 * images, labels


def make_modalities(folder, training, test, seed=0):
    """Write brains in nnU-Net's raw format, with the labels of test cases in ``labelsTs``."""
    generator = np.random.default_rng(seed)
    for index in range(training + test):
        split = "Tr" if index < training else "Ts"
        images, labels = make_brain(generator)
        for kind, volume, ending in [("images", image, f"_{c:04d}") for c, image in enumerate(images)] + [
            ("labels", labels, "")
        ]:
            (folder / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(volume)
            image.SetSpacing((1.0, 1.0, 5.0))
            sitk.WriteImage(image, str(folder / f"{kind}{split}" / f"brain_{index:03d}{ending}.nii.gz"))
    description = {
        "channel_names": {str(index): name for index, name in enumerate(CHANNELS)},
        "labels": LABELS,
        "numTraining": training,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
