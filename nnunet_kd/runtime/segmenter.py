"""Segment arrays and files with an exported model, from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .cases import PredictionCase, find_series_case, prepare_case
from .model import Model
from .predictor import predict_cases
from .preprocessing import preprocess

PathLike = str | os.PathLike[str]


class Segmenter(Model):
    """A model that segments images as ``nnUNetv2_predict`` does.

    One object can be used from several threads. They take turns at the engine, which uses all its threads for one call,
    and prepare and export their images at the same time.

    Args:
        folder: The folder that ``nnunet_kd export onnx`` wrote.
        engine: ``"openvino"``, ``"onnxruntime"``, or ``"auto"`` for the faster one that is installed.
        threads: The number of CPU threads of the engine; by default all cores available to the process.
        step_size: The step of the sliding window, in windows.
        mirroring: Average the logits over mirrored copies, along the axes that the training mirrored.
        bf16: Compute in bfloat16, which is faster on processors that do so natively; with OpenVINO only.

    Raises:
        FileNotFoundError: If there is no model in the folder.
        ValueError: If the model is incomplete or altered, or a setting is wrong.
        ImportError: If the engine is not installed.

    Example:
        >>> segmenter = Segmenter("student_onnx")
        >>> labels = segmenter.segment(ct, spacing=(1.5, 0.8, 0.8))  # ct: (z, y, x) in HU
    """

    def segment(self, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Segment an image that is in memory.

        Args:
            image: The image, ``(channels, z, y, x)``, or ``(z, y, x)`` if the model takes one channel, with the
                intensities of the files that the model was trained on: Hounsfield units for CT, 0 to 255 for colours. A
                slice has one plane, ``z = 1``. The image is not changed.
            spacing: The voxel size along ``z, y, x`` in mm. For a slice, the first number counts for nothing as long as
                it is much larger than the others, such as 999.

        Returns:
            The labels of ``dataset.json``, ``(z, y, x)``, in uint8, or uint16 from 255 structures on.

        Raises:
            ValueError: If the image has other channels than the model takes, or the spacing is not three sizes.
        """
        array = np.asarray(image)
        array = array[None] if array.ndim == 3 else array
        wanted = len(self.pipeline.channels)
        if array.ndim != 4 or len(array) != wanted or 0 in array.shape:
            names = ", ".join(self.pipeline.channels)
            raise ValueError(f"the image must have the shape ({wanted}, z, y, x) for {names}, got {np.shape(image)}")
        if len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
            raise ValueError(f"the spacing must be three sizes in mm along z, y, x, got {tuple(spacing)}")
        return self.label(*preprocess(list(array), spacing, self.pipeline))

    def segment_file(self, images: PathLike | Sequence[PathLike], output: PathLike | None = None) -> np.ndarray:
        """Segment an image that is in files.

        Args:
            images: The file of every channel, in the order of the model's channels, or one file that holds them all, or
                the folder of one DICOM series.
            output: The file of the segmentation, with the ending of the model's images, or ``.dcm`` for a DICOM
                segmentation of a series; by default, none is written.

        Returns:
            The labels of ``dataset.json``, ``(z, y, x)``, in the axis order of SimpleITK's arrays.

        Raises:
            ValueError: If a file cannot be read, the files do not belong together, or the output is an image or has
                another ending; the message names the file.
            OSError: If the segmentation cannot be written.
        """
        several = [images] if isinstance(images, str | os.PathLike) else list(images)
        paths = tuple(Path(path) for path in several)
        ending = self.pipeline.file_ending
        if len(paths) == 1 and paths[0].is_dir():
            return self._segment_series(paths[0], output)
        if output is None:
            return self.label(*prepare_case(PredictionCase(paths[0].name, paths, paths[0]), self.pipeline))
        target = Path(output)
        if not target.name.endswith(ending):
            raise ValueError(f"{target} does not end with {ending}, as the model's images do")
        return self._write(PredictionCase(paths[0].name, paths, target.with_name(target.name[: -len(ending)])))

    def _segment_series(self, folder: Path, output: PathLike | None) -> np.ndarray:
        case = find_series_case(folder, Path(output or folder), self.pipeline, self.name)
        if output is None:
            return self.label(*prepare_case(case, self.pipeline))
        return self._write(case)

    def _write(self, case: PredictionCase) -> np.ndarray:
        kept: list[np.ndarray] = []
        predict_cases(self, [case], keep=kept.append)
        return kept[0]
