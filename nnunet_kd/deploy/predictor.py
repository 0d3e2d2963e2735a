"""Predict with an ONNX model: nnU-Net's preprocessing, sliding window and export around another engine.

Reading, cropping, normalisation, resampling and writing use nnU-Net's own functions. The sliding window has the same
steps, Gaussian weights and mirroring, but runs in NumPy and single precision, while nnU-Net sums in half precision. The
segmentations can therefore differ in voxels where two classes agree to three digits, and in the outermost corners of a
volume, where the weights vanish in half precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.deploy.engines import Engine, open_engine
from nnunet_kd.deploy.folder import ModelDescription, read_model
from nnunet_kd.nnunet.error_reasons import reason
from nnunet_kd.nnunet.images import channel_of, images_by_case, in_order
from nnunet_kd.nnunet.reading import channel_names, plans_errors
from nnunet_kd.storage.integrity import check_whole
from nnunet_kd.storage.overwriting import check_kept
from nnunet_kd.storage.writing import naming_full_disk, not_written, put_in_place, scratch_folder

Progress = Callable[[Iterable[Any], int], Iterable[Any]]

ELSEWHERE = "Give another folder for the segmentations"


@dataclass(frozen=True)
class PredictionCase:
    """One case to predict.

    Attributes:
        name: The name of the case.
        images: The image file of every channel.
        target: The path of the segmentation without its file ending.
    """

    name: str
    images: tuple[Path, ...]
    target: Path


class OnnxPredictor:
    """A predictor that segments cases with an ONNX model.

    Args:
        folder: The folder that ``nnunet_kd export onnx`` wrote.
        engine: One of :data:`nnunet_kd.deploy.engines.ENGINES`.
        threads: The number of CPU threads.
        step_size: The step of the sliding window, in patches.
        mirroring: Average the logits over mirrored copies, along the axes that the training mirrored.

    Raises:
        FileNotFoundError: If there is no model in the folder.
        ValueError: If the model is incomplete or altered, or a setting is wrong.
    """

    def __init__(self, folder: Path, engine: str, threads: int, step_size: float = 0.5, mirroring: bool = True) -> None:
        if not 0 < step_size <= 1:
            raise ValueError(f"the step size must be above 0 and at most 1, got {step_size:g}")
        self.model: ModelDescription
        self.model, self.plans, self.dataset_json = read_model(folder)
        self.threads = threads
        self._step_size = step_size
        self._manager = PlansManager(self.plans)
        with plans_errors(folder / "plans.json"):
            self._configuration = self._manager.get_configuration(self.model.configuration)
            labels = self._manager.get_label_manager(self.dataset_json)
            self._heads: int = labels.num_segmentation_heads
            self._preprocessor = self._configuration.preprocessor_class(verbose=False)
        self.channels = len(channel_names(self.dataset_json))
        axes = tuple(self.model.mirroring or ()) if mirroring else ()
        self._flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
        self._patch = tuple(self.model.patch_size)
        self._weights = _importance(self._patch)
        shape = (1, self.channels, *self._patch)
        self._engines: list[Engine] = [
            open_engine(engine, folder / name, shape, threads) for name in self.model.networks
        ]

    @property
    def file_ending(self) -> str:
        """The file ending of images and segmentations."""
        ending: str = self.dataset_json["file_ending"]
        return ending

    def preprocess(self, case: PredictionCase) -> tuple[np.ndarray, dict[str, Any]]:
        """Preprocess a case as nnU-Net does.

        Returns:
            The image ``(channels, z, y, x)``, and the properties that map it back to the original grid.

        Raises:
            ValueError: If images cannot be read or do not belong together; the message names the case.
        """
        files = [str(path) for path in case.images]
        try:
            for path in case.images:
                check_whole(path)
            data, _, properties = self._preprocessor.run_case(
                files, None, self._manager, self._configuration, self.dataset_json
            )
            if len(data) != self.channels:
                raise ValueError(f"they have {len(data)} channels, but the model takes {self.channels}")
            if len(properties.get("sitk_stuff", {}).get("spacing", ())) > 3:  # nnU-Net can read it
                raise ValueError(
                    "nnU-Net writes no segmentation of a 4-D image: save each channel as a 3-D image of its own, "
                    f"{case.name}_0000{self.file_ending} and so on"
                )
        except Exception as error:  # each image library has exceptions of its own
            fault = self._fault(case) or f"cannot preprocess {', '.join(files)}: {reason(error)}"
            raise ValueError(f"case {case.name}: {fault}") from error
        return data, properties

    def _fault(self, case: PredictionCase) -> str | None:
        """Say which image prevents preprocessing and why, or return ``None`` if no single image is at fault."""
        channels = 0
        first: tuple[tuple[int, ...], Sequence[float]] | None = None
        for path in case.images:
            try:
                check_whole(path)
                data, properties = self._reader().read_images([str(path)])
            except Exception as error:  # each image library has exceptions of its own
                return f"cannot read {path}: {reason(error, path)}"
            size, spacing = data.shape[1:], properties["spacing"]
            first = first or (size, spacing)
            if size != first[0]:
                return f"{path} has {_times(size)} voxels, but {case.images[0]} has {_times(first[0])}"
            if not np.allclose(spacing, first[1]):  # nnU-Net compares spacings this way
                return f"{path} has voxels of {_times(spacing)} mm, but {case.images[0]} of {_times(first[1])} mm"
            channels += len(data)
        if channels == self.channels:
            return None
        names = ", ".join(map(str, channel_names(self.dataset_json).values()))
        which = f"{path} has" if len(case.images) == 1 else f"{', '.join(map(str, case.images))} have"
        alpha = ". Save it without transparency (alpha)" if (self.channels, channels) in ((1, 2), (3, 4)) else ""
        count = f"{channels} channel{'' if channels == 1 else 's'}"
        return f"{which} {count}, but the model takes {self.channels} ({names}){alpha}"

    @property
    def _reader(self) -> Any:
        """The nnU-Net class that reads images and writes segmentations."""
        return self._manager.image_reader_writer_class

    def files_of(self, case: PredictionCase, probabilities: bool) -> list[Path]:
        """List the files that are written for a case, the segmentation first."""
        beside = [".npz", ".pkl"] if probabilities else []
        if issubclass(self._reader, Tiff3DIO):  # it stores the voxel size separately
            beside.append(".json")
        return [Path(f"{case.target}{ending}") for ending in (self.file_ending, *beside)]

    def logits(self, data: np.ndarray, progress: Progress = lambda work, _: work) -> np.ndarray:
        """Compute the logits of a preprocessed case with a sliding window.

        Args:
            data: The image ``(channels, z, y, x)``.
            progress: A function that wraps the patches to show progress.

        Returns:
            The logits in float32, ``(heads, z, y, x)``.
        """
        padded, unpadded = pad_nd_image(
            np.ascontiguousarray(data, dtype=np.float32), self._patch, "constant", {"constant_values": 0}, True, None
        )
        places = list(self._places(padded.shape[1:]))
        total = np.zeros((self._heads, *padded.shape[1:]), dtype=np.float32)
        weights = np.zeros(padded.shape[1:], dtype=np.float32)
        for place in progress(places, len(places)):
            patch = padded[place][None]
            weights[place[1:]] += self._weights
            total[place] += self._weights * self._mean_over_copies(patch)[0]
        total /= weights
        inside = (slice(None), *unpadded[1:])
        return np.ascontiguousarray(total[inside])

    def _places(self, size: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """Yield the index of every patch, slice by slice if patches are 2-D."""
        steps = compute_steps_for_sliding_window(tuple(size[-len(self._patch) :]), self._patch, self._step_size)
        slices: Iterable[tuple[Any, ...]] = [()] if len(size) == len(self._patch) else [(i,) for i in range(size[0])]
        for leading, starts in itertools.product(slices, itertools.product(*steps)):
            window = (slice(start, start + width) for start, width in zip(starts, self._patch, strict=True))
            yield (slice(None), *leading, *window)

    def _mean_over_copies(self, patch: np.ndarray) -> np.ndarray:
        """Return the logits of a patch, averaged over mirrored copies and folds."""
        total: np.ndarray | None = None
        for axes in self._flips:
            flipped = tuple(axis + 2 for axis in axes)
            copy = np.ascontiguousarray(np.flip(patch, flipped))
            for engine in self._engines:
                logits = np.flip(engine(copy), flipped)
                total = logits.copy() if total is None else np.add(total, logits, out=total)
        assert total is not None
        total /= len(self._flips) * len(self._engines)
        return total

    def write(self, case: PredictionCase, logits: np.ndarray, properties: dict[str, Any], probabilities: bool) -> None:
        """Resample to the original grid, undo the crop and write, as nnU-Net does; files are complete or absent.

        Args:
            case: The case, which says where to write.
            logits: The logits ``(heads, z, y, x)``.
            properties: The properties that :meth:`preprocess` returned.
            probabilities: Write the probabilities as well.

        Raises:
            UnwritableError: If the folder cannot be written to.
            DiskFullError: If there is no space for the files.
        """
        path = Path(f"{case.target}{self.file_ending}")
        with scratch_folder(path) as folder, naming_full_disk(path, replaced=True):
            unfinished = folder / "case"
            segmentation = Path(f"{unfinished}{self.file_ending}")
            export_prediction_from_logits(
                logits,
                properties,
                self._configuration,
                self._manager,
                self.dataset_json,
                str(unfinished),
                probabilities,
                num_threads_torch=self.threads,
            )
            if not self._reads(segmentation):  # SimpleITK reports no error on a full disk
                raise not_written(path)
            beside = [".pkl", ".npz"] if probabilities else []
            if Path(f"{unfinished}.json").is_file():  # it holds the voxel size of a 3-D TIFF file
                beside.append(".json")
            for ending in beside:
                put_in_place(Path(f"{unfinished}{ending}"), Path(f"{case.target}{ending}"))
            put_in_place(segmentation, path)  # last, so that its presence means that all files are complete

    def _reads(self, segmentation: Path) -> bool:
        try:
            check_whole(segmentation)
            self._reader().read_seg(str(segmentation))
        except Exception:  # each image library has exceptions of its own
            return False
        return True

    def predict(
        self,
        cases: Sequence[PredictionCase],
        probabilities: bool = False,
        progress: Progress = lambda work, _: work,
        patches: Progress = lambda work, _: work,
    ) -> None:
        """Predict and write cases; while one is predicted, the next is read and the previous one is written.

        Args:
            cases: The cases to predict.
            probabilities: Write the probabilities as well.
            progress: A function that wraps the cases to show progress.
            patches: A function that wraps the patches of each case to show progress.

        Raises:
            ValueError: If a file would overwrite an image, before anything is read; or if a case cannot be read, after
                the cases before it are written.
        """
        images = [path for case in cases for path in case.images]
        check_kept(images, (path for case in cases for path in self.files_of(case, probabilities)), ELSEWHERE)
        torch.set_num_threads(self.threads)
        with ExitStack() as stack:
            reader = stack.enter_context(ThreadPoolExecutor(1))
            writer = stack.enter_context(ThreadPoolExecutor(1))
            waiting: list[Future[tuple[np.ndarray, dict[str, Any]]]] = []
            written: Future[None] | None = None
            try:
                for number, case in enumerate(progress(cases, len(cases))):
                    for ahead in cases[number + len(waiting) : number + 2]:
                        waiting.append(reader.submit(self.preprocess, ahead))
                    data, properties = waiting.pop(0).result()
                    logits = self.logits(data, patches)
                    if written is not None:
                        written.result()
                    written = writer.submit(self.write, case, logits, properties, probabilities)
                if written is not None:
                    written.result()
            finally:
                reader.shutdown(wait=False, cancel_futures=True)


def _importance(patch: Sequence[int]) -> np.ndarray:
    """Return nnU-Net's Gaussian weights of a patch."""
    weights: np.ndarray = compute_gaussian(
        tuple(patch), sigma_scale=1.0 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
    ).numpy()
    return weights


def _times(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def find_cases(images: Path, output: Path, ending: str, channels: int) -> list[PredictionCase]:
    """Find the cases in a folder that follows nnU-Net's naming, or the case of one file.

    Args:
        images: A folder of ``CASE_0000ENDING`` files, or one file: either the first channel of a case with such a name,
            or any image that holds all channels.
        output: The folder of the segmentations; for one file, it can be the path of the segmentation.
        ending: The file ending of images and segmentations.
        channels: The number of channels of a case.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If a case has a missing or additional channel; the message names it.
    """
    if images.is_file():
        return [_case_of_file(images, output, ending, channels)]
    if not images.is_dir():
        raise FileNotFoundError(f"there is no {images}")
    found = images_by_case(images, ending)
    if not found:
        raise FileNotFoundError(f"{images} has no images named CASE_0000{ending}")
    files = in_order(found, channels, images, ending)
    return [PredictionCase(name, tuple(paths), output / name) for name, paths in files.items()]


def _case_of_file(image: Path, output: Path, ending: str, channels: int) -> PredictionCase:
    if not image.name.endswith(ending):
        raise ValueError(f"{image} does not end with {ending}, as the model's images do")
    name, number = channel_of(image.name, ending)
    files = {0: image}
    if number is not None:
        siblings = ((i, image.with_name(f"{name}_{i:04d}{ending}")) for i in range(channels))
        files = {i: path for i, path in siblings if path.is_file()}
    target = output / name
    if output.name.endswith(ending) and not output.is_dir():
        target = output.with_name(output.name[: -len(ending)])
    return PredictionCase(name, tuple(in_order({name: files}, channels, image.parent, ending)[name]), target)
