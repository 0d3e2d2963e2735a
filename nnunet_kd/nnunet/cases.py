"""The preprocessed cases of one configuration, from which soft labels are computed and which they must match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping, infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.dataset_names import dataset_number
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.images import is_left_over
from nnunet_kd.nnunet.reading import channel_names, plans_errors
from nnunet_kd.nnunet.unlabelled import normalised_with_outside, without_reference


class PreprocessedCases:
    """The preprocessed cases of one configuration.

    Args:
        folder: The data set's folder in ``nnUNet_preprocessed``.
        experiment: The plans, the configuration and the ``dataset.json``.

    Raises:
        FileNotFoundError: If no case is preprocessed.
        ValueError: See :func:`dataset_class`; also if nnU-Net cannot use the plans.
    """

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        plans = PlansManager(experiment.plans)
        self.folder = folder
        self.experiment = experiment
        with plans_errors(folder / f"{plans.plans_name}.json"):
            self.configuration = plans.get_configuration(experiment.configuration)
            self.labels = experiment.label_manager
            self.data = data_of(plans, experiment.configuration, experiment.dataset_json)
            self._source = folder / self.configuration.data_identifier
        self.identifiers = sorted(one.stem for one in self._source.glob("*.pkl") if not is_left_over(one.name))
        if not self.identifiers:
            number = dataset_number(folder.name)
            raise FileNotFoundError(
                f"there are no preprocessed cases in {self._source}. Fix: nnUNetv2_preprocess -d {number} "
                f"-plans_name {plans.plans_name} -c {experiment.configuration}"
            )
        self._dataset = dataset_class(self._source)(str(self._source))

    @property
    def channels(self) -> int:
        """The number of image channels."""
        return len(channel_names(self.experiment.dataset_json))

    def load(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Load the images ``(channels, z, y, x)`` and the labels ``(z, y, x)`` of a case; -1 labels what is not body.

        Raises:
            ValueError: If the labels have several values per voxel, as a colour picture does.
        """
        images, segmentation, _, _ = self._dataset.load_case(case)
        if len(segmentation) != 1:
            raise ValueError(
                f"the labels of case {case} have {len(segmentation)} values per voxel, of which nnU-Net uses only the "
                "first: write labels with one value per voxel, and preprocess again"
            )
        return np.asarray(images[:]), np.asarray(segmentation[0])

    def placement(self, case: str) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Return the shape ``(z, y, x)`` of a case and nnU-Net's properties, which place it in its raw image."""
        images, _, _, properties = self._dataset.load_case(case)
        return tuple(images.shape[1:]), properties

    def fingerprint(self, case: str) -> dict[str, str]:
        """Compute two SHA-256 digests of a case, one of its images and one of its labels, over shapes and voxels."""
        images, segmentation, _, _ = self._dataset.load_case(case)
        return {"images": _digest(images, np.float32), "labels": _digest(segmentation[:1], np.int16)}

    def without_reference(self) -> list[str]:
        """Return the cases without a reference; see :mod:`nnunet_kd.nnunet.unlabelled`."""
        return without_reference(self._dataset, self.labels)

    def normalised_with_outside(self, cases: Iterable[str]) -> list[str]:
        """Return those of some cases without a reference whose normalisation is not that of a prediction."""
        return normalised_with_outside(self._dataset, self.labels, cases, self.configuration)

    def modified(self, case: str) -> int:
        """Return the modification time of a preprocessed case, in nanoseconds."""
        parts = [self._source / f"{case}{end}" for end in (".pkl", ".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")]
        times: list[int] = [part.stat().st_mtime_ns for part in parts if part.is_file()]
        return max(times)


def _digest(channels: Any, kind: Any) -> str:
    """Compute the SHA-256 of a stack of channels, reading one channel at a time."""
    digest = hashlib.sha256()
    for number in range(channels.shape[0]):
        channel = np.ascontiguousarray(channels[number], dtype=kind)
        digest.update(repr(channel.shape).encode())
        digest.update(channel.data)
    return digest.hexdigest()


def dataset_class(folder: Path) -> Any:
    """Return nnU-Net's class that reads the preprocessed cases in a folder.

    Raises:
        ValueError: If the folder contains no case, or a file that does not belong to one.
    """
    try:
        return infer_dataset_class(str(folder))
    except (AssertionError, KeyError):
        known = {".pkl", ".npy", *(f".{ending}" for ending in file_ending_dataset_mapping)}
        strange = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix not in known)
        what = f"{strange[0]}, which nnU-Net mistakes for a case: remove it" if strange else "no case: preprocess again"
        raise ValueError(f"{folder} contains {what}") from None


def data_of(plans_manager: Any, configuration: str, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the data and the labels that the soft labels of an experiment depend on."""
    settings = plans_manager.get_configuration(configuration)
    labels = plans_manager.get_label_manager(dataset_json)
    return {
        "dataset": plans_manager.dataset_name,
        "preprocessed": settings.data_identifier,
        "spacing": [float(width) for width in settings.spacing],
        "normalization": list(settings.normalization_schemes),
        "labels": dataset_json["labels"],
        "regions": [list(np.atleast_1d(region).tolist()) for region in labels.foreground_regions]
        if labels.has_regions
        else None,
        "heads": labels.num_segmentation_heads,
    }
