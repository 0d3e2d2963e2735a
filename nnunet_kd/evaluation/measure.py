"""What a trained model costs on this device, measured through nnU-Net's own predictor."""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunet_kd.evaluation.cost import Cost, configuration_cost
from nnunet_kd.processes import end_with_parent
from nnunet_kd.reading import read_dataset_json, read_plans


@dataclass(frozen=True)
class Measured:
    """One model on one device.

    Attributes:
        network: Parameters, FLOPs and activations a patch.
        passes: Forward passes a case: patches times mirrored copies, mean over the cases.
        seconds: In the network a case, median over the cases, after one warm-up case.
        peak_bytes: Of memory: the weights, and what predicting takes at most beyond them and the images.
        device: What it ran on.
        cases: How many were measured.
    """

    network: Cost
    passes: float
    seconds: float
    peak_bytes: int
    device: str
    cases: int

    @property
    def flops(self) -> float:
        """Floating point operations a case."""
        return self.network.flops * self.passes


def measure(checkpoint: Path, configuration: str, images: Path, device: str, cases: int = 5) -> Measured:
    """Predict a few cases in a process of its own, so that its peak memory is that of this model.

    Reading, resampling and writing are not timed.

    Args:
        checkpoint: In a results folder, ``fold_*/checkpoint_*.pth``.
        configuration: That it was trained for.
        images: Folder of raw images, as for ``nnUNetv2_predict``.
        device: ``"cpu"`` or ``"cuda"``.
        cases: At most so many, in the order of their names.

    Raises:
        ValueError: For a folder without images.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        return pool.submit(_measure, checkpoint, configuration, images, device, cases).result()


def _measure(checkpoint: Path, configuration: str, images: Path, device: str, cases: int) -> Measured:
    model_folder, fold = checkpoint.parents[1], checkpoint.parent.name.removeprefix("fold_")
    plans = read_plans(model_folder / "plans.json")
    dataset_json = read_dataset_json(model_folder / "dataset.json")
    network = configuration_cost(plans, configuration, dataset_json)
    files = create_lists_from_splitted_dataset_folder(str(images), dataset_json["file_ending"])[:cases]
    if not files:
        raise ValueError(f"there are no images in {images}")

    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model_folder), (fold,), checkpoint.name)
    assert predictor.configuration_manager is not None
    counter = _Passes()
    module: torch.nn.Module = predictor.network
    module.to(predictor.device).eval()
    module.register_forward_hook(counter)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    arrays = [
        preprocessor.run_case(
            case, None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )[0]
        for case in files
    ]
    before = start_of_peak(device)
    seconds = []
    for number, data in enumerate([arrays[0], *arrays]):
        if number == 1:
            counter.count = 0
        start = time.perf_counter()
        predictor.predict_sliding_window_return_logits(torch.from_numpy(data))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Measured(
        network,
        counter.count / len(files),
        statistics.median(seconds[1:]),
        peak_memory(device) - before + sum(p.numel() * p.element_size() for p in module.parameters()),
        name,
        len(files),
    )


class _Passes:
    """Counts what goes through a network."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1


def start_of_peak(device: str) -> int:
    """Bytes this process uses on ``"cpu"`` or ``"cuda"`` now; from here on :func:`peak_memory` counts."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return peak_memory(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _linux_memory("VmRSS")


def peak_memory(device: str) -> int:
    """Most bytes in use since :func:`start_of_peak`; on a CPU that is no Linux, since the process began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        return _linux_memory("VmHWM")
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _linux_memory(entry: str) -> int:
    """A line of ``/proc/self/status``, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry)]
    return 1024 * int(line.split()[1])
