"""Predict cases from image files to segmentation files, each complete or absent."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .cases import PredictionCase, prepare_case
from .dicom.segmentation import is_segmentation
from .files.integrity import check_whole
from .files.overwriting import check_kept
from .files.writing import naming_full_disk, not_written, put_in_place, scratch_folder
from .model import Model
from .plans import Pipeline
from .preprocessing import Grid
from .probabilities import ProbabilityFile
from .readers import FORMATS, Header, labels_on_grid
from .sliding_window import Progress

ELSEWHERE = "Give another folder for the segmentations"


def files_of(case: PredictionCase, pipeline: Pipeline, probabilities: bool) -> list[Path]:
    """List the files that are written for a case, the segmentation first."""
    beside = [".npz", ".pkl"] if probabilities else []
    if FORMATS[pipeline.reader].has_voxel_size_file:
        beside.append(".json")
    return [Path(f"{case.target}{ending}") for ending in (case.ending(pipeline), *beside)]


class CaseFiles:
    """The files of one case, in a hidden folder until all of them are complete.

    Args:
        case: The case, which says where to write.
        pipeline: The settings of the model.
        grid: How the grid of the model lies in the image.
        probabilities: Write the probabilities as well.

    Raises:
        UnwritableError: If the folder cannot be written to.
        DiskFullError: If there is no space for the files.
    """

    def __init__(self, case: PredictionCase, pipeline: Pipeline, grid: Grid, probabilities: bool) -> None:
        self.path = files_of(case, pipeline, False)[0]
        self._case, self._pipeline, self._grid = case, pipeline, grid
        self._open = ExitStack()
        self._folder = self._open.enter_context(scratch_folder(self.path))
        self.probabilities: ProbabilityFile | None = None
        if probabilities:
            self.probabilities = ProbabilityFile(self._folder, grid, pipeline.labels)
            self._open.callback(self.probabilities.close)

    def finish(self, labels: np.ndarray) -> None:
        """Write the labels ``(z, y, x)`` and what belongs to them, and put everything in its place."""
        with self._open, naming_full_disk(self.path, replaced=True):
            path = self._folder / f"case{self._case.ending(self._pipeline)}"
            write_segmentation(labels, path, self._grid, self._pipeline, self._case)
            if self.probabilities is not None:
                self.probabilities.write(self._folder / "case.npz")
                (self._folder / "case.pkl").write_bytes(pickle.dumps(self._grid.properties()))
            if not self._is_written(path):  # SimpleITK reports no error on a full disk
                raise not_written(self.path)
            files = files_of(self._case, self._pipeline, self.probabilities is not None)
            for final in reversed(files):  # the segmentation is last, and means that all files are complete
                name = final.name[len(self._case.target.name) :]
                put_in_place(self._folder / f"case{name}", final)

    def close(self) -> None:
        """Remove what is not finished."""
        self._open.close()

    def _is_written(self, path: Path) -> bool:
        if self._case.dicom is not None:
            return is_segmentation(path)
        try:
            check_whole(path)
            if not path.name.endswith((".nii", ".gz")):  # whose length is checked
                FORMATS[self._pipeline.reader].read(path)
        except Exception:  # each image library has exceptions of its own
            return False
        return True


def write_segmentation(labels: np.ndarray, path: Path, grid: Grid, pipeline: Pipeline, case: PredictionCase) -> None:
    """Write labels ``(z, y, x)`` with the geometry of the image."""
    z, y, x = grid.spacing
    header = Header((z, y, x), grid.geometry)
    if case.dicom is not None:
        case.dicom.write(sitk.GetArrayFromImage(labels_on_grid(labels, header)), path)
    elif case.series is not None:
        sitk.WriteImage(labels_on_grid(labels, header), str(path), True)
    else:
        FORMATS[pipeline.reader].write(labels, path, header)


def predict_cases(
    model: Model,
    cases: Sequence[PredictionCase],
    probabilities: bool = False,
    progress: Progress = lambda work, _: work,
    windows: Progress = lambda work, _: work,
    keep: Callable[[np.ndarray], object] = lambda _: None,
) -> None:
    """Predict and write cases; while one is predicted, the next is read and the previous one is written.

    Args:
        model: The model.
        cases: The cases to predict.
        probabilities: Write the probabilities as well.
        progress: A function that wraps the cases to show progress.
        windows: A function that wraps the windows of each case to show progress.
        keep: A function that takes the labels of every case.

    Raises:
        ValueError: If a file would overwrite an image, before anything is read; or if a case cannot be read, after
            the cases before it are written.
    """
    pipeline = model.pipeline
    images = [path for case in cases for path in case.images]
    check_kept(images, (path for case in cases for path in files_of(case, pipeline, probabilities)), ELSEWHERE)
    with ExitStack() as stack:
        reader = stack.enter_context(ThreadPoolExecutor(1))
        writer = stack.enter_context(ThreadPoolExecutor(1))
        waiting: list[Future[tuple[np.ndarray, Grid]]] = []
        written: Future[None] | None = None
        try:
            for number, case in enumerate(progress(cases, len(cases))):
                for ahead in cases[number + len(waiting) : number + 2]:
                    waiting.append(reader.submit(prepare_case, ahead, pipeline))
                image, grid = waiting.pop(0).result()
                files = CaseFiles(case, pipeline, grid, probabilities)
                try:
                    sink = None if files.probabilities is None else files.probabilities.add
                    with naming_full_disk(files.path, replaced=True):
                        labels = model.label(image, grid, sink, windows)
                    keep(labels)
                    if written is not None:
                        written.result()
                except BaseException:
                    files.close()
                    raise
                written = writer.submit(files.finish, labels)
            if written is not None:
                written.result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
