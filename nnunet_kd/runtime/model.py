"""An exported model in memory: preprocessed image in, labels out."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from .engines import Engine, available_threads, choose_engine, open_engine
from .export import LabelAssembly, Sink
from .folder import ModelDescription, read_model
from .plans import Pipeline, read_pipeline
from .preprocessing import Grid
from .sliding_window import Progress, SlidingWindow


class Model:
    """The networks of an exported model with the sliding window and the export around them.

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
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        engine: str = "auto",
        threads: int | None = None,
        step_size: float = 0.5,
        mirroring: bool = True,
        bf16: bool = False,
    ) -> None:
        if not 0 < step_size <= 1:
            raise ValueError(f"the step size must be above 0 and at most 1, got {step_size:g}")
        path = Path(folder)
        self.model: ModelDescription
        self.plans: dict[str, Any]
        self.dataset_json: dict[str, Any]
        self.model, self.plans, self.dataset_json = read_model(path)
        self.pipeline: Pipeline = read_pipeline(self.plans, self.dataset_json, self.model.configuration, path)
        self._patch = tuple(self.model.patch_size)
        self.window = SlidingWindow(self._patch, self.pipeline.labels.heads, step_size)
        axes = tuple(self.model.mirroring or ()) if mirroring else ()
        self._flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
        shape = (1, len(self.pipeline.channels), *self._patch)
        self._turn = threading.Lock()
        name = choose_engine(engine)
        self.engines: list[Engine] = [
            open_engine(name, path / network, shape, threads or available_threads(), bf16)
            for network in self.model.networks
        ]

    @property
    def name(self) -> str:
        """The name of the model for the record in a segmentation: nnU-Net and the data set it was trained on."""
        return f"nnU-Net {self.plans.get('dataset_name', '')}".strip()

    @property
    def copies(self) -> int:
        """The number of mirrored copies of a window, the window itself included."""
        return len(self._flips)

    def label(
        self,
        image: np.ndarray,
        grid: Grid,
        probabilities: Sink | None = None,
        progress: Progress = lambda work, _: work,
    ) -> np.ndarray:
        """Segment a preprocessed image, with the logits of one window's depth in memory at a time.

        Args:
            image: The image, float32 ``(channels, z, y, x)``, from :func:`nnunet_kd.runtime.preprocessing.preprocess`.
            grid: How its grid lies in the file.
            probabilities: A function that takes the probabilities of every plane.
            progress: A function that wraps the windows to show progress.

        Returns:
            The labels on the grid of the file, ``(z, y, x)``.
        """
        assembly = LabelAssembly(
            image.shape[1:], grid, self.pipeline.labels, self.pipeline.logits_resampling, probabilities
        )
        for slab in self.window.slabs(image, self._mean_over_copies, progress):
            assembly.add(slab)
        return assembly.result()

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Return all logits of a preprocessed image at once, float32 ``(heads, z, y, x)``."""
        return np.concatenate([slab.copy() for slab in self.window.slabs(image, self._mean_over_copies)], axis=1)

    def _mean_over_copies(self, patch: np.ndarray) -> np.ndarray:
        """Return the logits of a patch, averaged over mirrored copies and folds."""
        total: np.ndarray | None = None
        for axes in self._flips:
            flipped = tuple(axis + 1 for axis in axes)
            copy = np.ascontiguousarray(np.flip(patch, flipped)[None])
            for engine in self.engines:
                with self._turn:
                    logits = np.flip(engine(copy)[0], flipped)
                    total = logits.copy() if total is None else np.add(total, logits, out=total)
        assert total is not None
        total /= len(self._flips) * len(self.engines)
        return total
