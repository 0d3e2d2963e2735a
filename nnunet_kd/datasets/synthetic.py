"""A synthetic data set: brain-like volumes of three modalities with small lesions of two classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_kd.storage.writing import write_whole

CHANNELS = ("T1", "T1C", "FLAIR")
LABELS = {"background": 0, "oedema": 1, "enhancing": 2}

# These are the mean intensities of each tissue in each channel.
_TISSUES = {"white": (1.0, 1.0, 0.6), "grey": (0.7, 0.7, 0.8), "fluid": (0.2, 0.2, 0.1), "skull": (1.3, 1.3, 0.9)}
_OEDEMA, _ENHANCING = (-0.2, -0.2, 0.6), (-0.05, 0.9, 0.4)

Volume = NDArray[np.float32]


def make_case(
    shape: tuple[int, int, int], generator: np.random.Generator, lesions: float = 1.0
) -> tuple[Volume, NDArray[np.uint8]]:
    """Make one head: a skull, folded grey and white matter, ventricles, lesions, a bias field and noise.

    Args:
        shape: Voxels (z, y, x).
        generator: The same state makes the same head.
        lesions: The factor by which lesions are larger than usual.

    Shape:
        Images ``(3, z, y, x)``, labels ``(z, y, x)``.
    """
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    stretch = generator.uniform(0.8, 0.92, 3).reshape(3, 1, 1, 1)
    folds = _smooth_noise(shape, 1.5, generator)
    radius = np.sqrt(((grid / stretch) ** 2).sum(0)) + 0.04 * folds
    brain = radius < 0.85
    ventricle = np.sqrt((grid * np.array([2.2, 1.6, 4.5]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 0.8
    tissue = {
        "skull": (radius >= 0.92) & (radius < 1.02),
        "fluid": ((radius >= 0.85) & (radius < 0.92)) | (brain & ventricle),
        "grey": brain & ~ventricle & (radius + 0.09 * folds > 0.7),
    }
    tissue["white"] = brain & ~tissue["fluid"] & ~tissue["grey"]
    images = np.zeros((len(CHANNELS), *shape), np.float32)
    for name, mask in tissue.items():
        images[:, mask] = np.array(_TISSUES[name], np.float32)[:, None]

    labels = np.zeros(shape, np.uint8)
    inside = np.argwhere(brain & ~ventricle & (radius < 0.7))
    for _ in range(generator.integers(1, 4)):
        centre = inside[generator.integers(len(inside))]
        oedema = _blob(shape, centre, lesions * generator.uniform(2.8, 4.6), generator) & brain
        labels[oedema & (labels == 0)] = LABELS["oedema"]
        if generator.random() < 0.8:
            near = centre + generator.integers(-1, 2, 3)
            labels[_blob(shape, near, lesions * generator.uniform(1.8, 2.8), generator) & brain] = LABELS["enhancing"]
    for label, change in ((LABELS["oedema"], _OEDEMA), (LABELS["enhancing"], _ENHANCING)):
        images[:, labels == label] += np.array(change, np.float32)[:, None] * generator.uniform(0.7, 1.1)

    head = radius < 1.02
    for channel in images:
        channel += 0.08 * _smooth_noise(shape, 1.0, generator) * head
        channel *= np.exp(0.25 * _smooth_noise(shape, 8.0, generator))
        channel += generator.normal(0, 0.05, shape)
    return 1000 * images, labels


def _smooth_noise(shape: tuple[int, ...], sigma: float, generator: np.random.Generator) -> Volume:
    noise = gaussian_filter(generator.standard_normal(shape), sigma)
    smooth: Volume = (noise / noise.std()).astype(np.float32)
    return smooth


def _blob(
    shape: tuple[int, ...], centre: NDArray[np.integer], radius: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return the inside of a rough ball, flatter along z because voxels are thicker there."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"))
    offset = (grid - centre.reshape(3, 1, 1, 1)) * np.array([1.6, 1.0, 1.0]).reshape(3, 1, 1, 1)
    rough: NDArray[np.bool_] = np.sqrt((offset**2).sum(0)) + 0.6 * _smooth_noise(shape, 1.0, generator) < radius
    return rough


def make_dataset(
    folder: Path,
    training: int = 24,
    test: int = 8,
    shape: tuple[int, int, int] = (15, 31, 27),
    spacing: tuple[float, float, float] = (2.5, 1.2, 1.3),
    seed: int = 0,
    lesions: float = 1.0,
) -> None:
    """Write a raw data set for nnU-Net.

    Args:
        folder: ``.../DatasetXXX_Name``, which is made if it does not exist.
        training: Number of cases in ``imagesTr`` and ``labelsTr``.
        test: Number of cases in ``imagesTs`` and, beside nnU-Net's own layout, ``labelsTs``.
        shape: Voxels (z, y, x) of a typical case; each axis varies by one voxel.
        spacing: Size of the voxels in mm (z, y, x).
        seed: The same seed makes the same files.
        lesions: The factor by which lesions are larger than usual; larger ones are learned sooner.
    """
    import SimpleITK

    from nnunet_kd.datasets.volumes import write_image

    generator = np.random.default_rng(seed)
    for index in range(training + test):
        split = "Tr" if index < training else "Ts"
        varied = tuple(int(size + generator.integers(-1, 2)) for size in shape)
        images, labels = make_case((varied[0], varied[1], varied[2]), generator, lesions)
        for name, volume in [*((f"_{c:04d}", image) for c, image in enumerate(images)), ("", labels)]:
            kind = folder / f"{'images' if name else 'labels'}{split}"
            kind.mkdir(parents=True, exist_ok=True)
            image = SimpleITK.GetImageFromArray(volume)
            image.SetSpacing(tuple(reversed(spacing)))
            write_image(image, kind / f"head_{index:03d}{name}.nii.gz")
    description = {
        "channel_names": {str(index): name for index, name in enumerate(CHANNELS)},
        "labels": LABELS,
        "numTraining": training,
        "file_ending": ".nii.gz",
    }
    write_whole(folder / "dataset.json", json.dumps(description, indent=2))
