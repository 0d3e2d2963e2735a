"""Measure the time and the memory that trained models take on this device, with nnU-Net's predictor."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunet_kd.evaluation.cost import Cost, configuration_cost
from nnunet_kd.nnunet.checkpoint import mirroring_axes, read_checkpoint
from nnunet_kd.nnunet.reading import channel_names, read_dataset_json, read_plans
from nnunet_kd.storage.processes import end_with_parent

CASES = 5  # the number of cases that are predicted
# The entries of a configuration that do not affect prediction.
OF_TRAINING = ("data_identifier", "batch_size", "batch_dice", "median_image_size_in_voxels")


@dataclass(frozen=True)
class Measured:
    """The measured cost of one model on one device.

    Attributes:
        network: The parameters, and the FLOPs and activations per patch.
        passes: The mean number of forward passes per case, which is the number of patches times mirrored copies.
        seconds: The median time of prediction per case, after a warm-up case.
        peak_bytes: The memory of the weights and the peak memory of prediction, without the images.
        device: The name of the device.
        cases: The number of measured cases.
    """

    network: Cost
    passes: float
    seconds: float
    peak_bytes: int
    device: str
    cases: int

    @property
    def flops(self) -> float:
        """The floating point operations per case."""
        return self.network.flops * self.passes


@dataclass(frozen=True)
class Model:
    """A trained model that can be measured.

    Attributes:
        checkpoint: The checkpoint in a results folder, ``fold_*/checkpoint_*.pth``.
        configuration: The configuration for which the model was trained.
        trusted: Whether loading the checkpoint can run code.
    """

    checkpoint: Path
    configuration: str
    trusted: bool = False

    @cached_property
    def network(self) -> str:
        """A text that is equal for models of equal cost, which have the same network on the same grid."""
        folder = self.checkpoint.parents[1]
        manager = PlansManager(read_plans(folder / "plans.json"))
        settings = manager.get_configuration(self.configuration).configuration
        dataset_json = read_dataset_json(folder / "dataset.json")
        content = {
            "configuration": {key: value for key, value in settings.items() if key not in OF_TRAINING},
            "transpose": manager.plans.get("transpose_forward"),
            "channels": channel_names(dataset_json),
            "labels": dataset_json["labels"],
            "mirroring": mirroring_axes(read_checkpoint(self.checkpoint, self.trusted), self.checkpoint),
        }
        return json.dumps(content, sort_keys=True, default=str)


def measure(checkpoint: Path, configuration: str, images: Path, device: str, cases: int = CASES) -> Measured:
    """Measure one model; see :func:`measure_models`."""
    (measured,) = measure_in_turn([Model(checkpoint, configuration)], [images], device, cases)
    return measured


def measure_models(models: Mapping[str, Model], images: Path, device: str, cases: int = CASES) -> dict[str, Measured]:
    """Measure several models on a few cases, taking turns so that all models run under the same conditions.

    Equal networks are measured only once. Each network runs in a separate process, so that the peak memory is that of
    one model. Reading, resampling and writing are not timed.

    Args:
        models: The models by name.
        images: The folder of raw images, as for ``nnUNetv2_predict``.
        device: ``"cpu"`` or ``"cuda"``.
        cases: The maximum number of cases, taken in the order of their names.

    Raises:
        ValueError: If the folder contains no images.
    """
    different: dict[str, Model] = {}
    for model in models.values():
        different.setdefault(model.network, model)
    found = measure_in_turn(list(different.values()), [images] * len(different), device, cases)
    measured = dict(zip(different, found, strict=True))
    return {name: measured[model.network] for name, model in models.items()}


def measure_in_turn(models: Sequence[Model], images: Sequence[Path], device: str, cases: int = CASES) -> list[Measured]:
    """Measure every model in a separate process, taking turns case by case; see :func:`measure_models`.

    Args:
        models: The models.
        images: The folder of raw images of every model, which has the same cases with the channels that it sees.
        device: ``"cpu"`` or ``"cuda"``.
        cases: The maximum number of cases.

    Raises:
        ValueError: If a folder contains no images.
    """
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent))
            for _ in models
        ]
        for pool, model, folder in zip(pools, models, images, strict=True):
            count = pool.submit(_begin, model, folder, device, cases).result()
        for number in range(count):
            for pool in pools:
                pool.submit(_predict, number).result()
        return [pool.submit(_end).result() for pool in pools]


_measurements: list[Measurement] = []  # one per process


def _begin(model: Model, images: Path, device: str, cases: int) -> int:
    _measurements.append(Measurement(model, images, device, cases))
    return len(_measurements[0])


def _predict(number: int) -> None:
    _measurements[0].predict(number)


def _end() -> Measured:
    return _measurements[0].measured()


class Measurement:
    """The measurement of one model in this process, which predicts the first case once to warm up.

    Args:
        model: The model to measure.
        images: The folder of raw images.
        device: ``"cpu"`` or ``"cuda"``.
        cases: The maximum number of cases.

    Raises:
        ValueError: If the folder contains no images.
    """

    def __init__(self, model: Model, images: Path, device: str, cases: int) -> None:
        model_folder, fold = model.checkpoint.parents[1], model.checkpoint.parent.name.removeprefix("fold_")
        plans = read_plans(model_folder / "plans.json")
        dataset_json = read_dataset_json(model_folder / "dataset.json")
        # By default nnU-Net would fork twelve processes to sort the names of the files.
        files = create_lists_from_splitted_dataset_folder(str(images), dataset_json["file_ending"], num_processes=1)
        files = files[:cases]
        if not files:
            raise ValueError(f"there are no images in {images}")

        with contextlib.redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(str(model_folder), (fold,), model.checkpoint.name)
        assert predictor.configuration_manager is not None
        self._predictor, self._device = predictor, device
        self._module: torch.nn.Module = predictor.network
        self._cost = configuration_cost(plans, model.configuration, dataset_json, self._module)
        self._module.to(predictor.device).eval()
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        self._arrays = [
            preprocessor.run_case(
                case, None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
            )[0]
            for case in files
        ]
        self._seconds: list[float] = []
        self._before = start_of_peak(device)
        self.predict(0)
        self._seconds.clear()
        self._passes = _Passes()
        self._module.register_forward_hook(self._passes)

    def __len__(self) -> int:
        return len(self._arrays)

    def predict(self, number: int) -> None:
        """Predict one case and record the time."""
        start = time.perf_counter()
        self._predictor.predict_sliding_window_return_logits(torch.from_numpy(self._arrays[number]))
        if self._device == "cuda":
            torch.cuda.synchronize()
        self._seconds.append(time.perf_counter() - start)

    def measured(self) -> Measured:
        """Return the result, after all cases have been predicted."""
        name = torch.cuda.get_device_name() if self._device == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
        return Measured(
            self._cost,
            self._passes.count / len(self),
            statistics.median(self._seconds),
            peak_memory(self._device)
            - self._before
            + sum(p.numel() * p.element_size() for p in self._module.parameters()),
            name,
            len(self),
        )


class _Passes:
    """A hook that counts the forward passes of a network."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1


def start_of_peak(device: str) -> int:
    """Return the bytes that this process uses on ``"cpu"`` or ``"cuda"``, and restart :func:`peak_memory`."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return peak_memory(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _linux_memory("VmRSS")


def peak_memory(device: str) -> int:
    """Return the peak memory in bytes since :func:`start_of_peak`; on a CPU without Linux, since the process began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        return _linux_memory("VmHWM")
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _linux_memory(entry: str) -> int:
    """Return an entry of ``/proc/self/status`` in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return 1024 * int(line.split()[1])
