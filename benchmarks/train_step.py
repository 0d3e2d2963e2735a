"""Time what distillation adds to a training step on the CPU, all sides in one run.

    python benchmarks/train_step.py [--patch 64 64 64] [--batch 2] [--repeats 5] [--methods DCD ...]

The step of a distilled student is compared with the step of the same student alone plus the forward pass of the part of
the teacher that the method needs: the encoder for features, the whole network for logits. Both sides run the trainer's
own ``train_step`` on random images. "FreeKD prompts" is a step of the epochs in which the prompts are tuned and the
teacher's decoder runs once more, forward and backward. Self-distillation has no teacher. Its step is compared with that
of the same network alone, at full width and at a quarter of it, in time and in peak memory (each in a process of its
own). With stored soft labels no teacher runs either: the step of SoftKD is compared with the student's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("nnUNet_compile", "f")

import torch
from timing import medians

DATASET = "Dataset500_Benchmark"
METHODS = ("LogitsKD", "FitNets", "CWD", "IFVD", "FreeKD", "DCD", "DPRD", "ReCoKD", "RKD", "CIRKD", "SKD")


def plans(patch: list[int], batch: int) -> dict[str, Any]:
    """Return plans of a plain U-Net with nnU-Net's widths and four downsampling steps."""
    stages, triple = 5, [3, 3, 3]
    arguments = {
        "n_stages": stages,
        "features_per_stage": [32, 64, 128, 256, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [triple] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "none",
        "batch_size": batch,
        "patch_size": patch,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [False] * 4,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {"3d_fullres": configuration},
    }


DATASET_JSON = {
    "channel_names": {str(channel): str(channel) for channel in range(4)},
    "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
    "file_ending": ".nii.gz",
    "numTraining": 1,
}


def trainer(name: str, patch: list[int], batch: int, reduction: float | None = None, device: str = "cpu") -> Any:
    """Return an initialised trainer, nnU-Net's own for an empty name, with its default width or a reduced one."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    kind = recursive_find_trainer_class_by_name(f"nnUNetTrainer{name}")
    content = plans(patch, batch)
    if reduction is not None:
        content["nnunet_kd"] = {"student": {"reduction": reduction}}
    made = kind({**content, "continue_training": False}, "3d_fullres", 0, DATASET_JSON, torch.device(device))
    made.initialize()
    made.network.train()
    if name and made.distiller.teacher is not None:
        made.distiller.teacher.to(made.device)
    return made


def main() -> None:
    """Read the arguments, and run the benchmark in a temporary experiment."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64])
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--methods", nargs="+", choices=METHODS, help="time these beside NoKD, and nothing else")
    chosen = options.parse_args()
    with scratch_experiment(chosen.patch, chosen.batch):
        run(chosen.patch, chosen.batch, chosen.repeats, chosen.methods or METHODS)
        if chosen.methods is None:
            compare_others(chosen.patch, chosen.batch, chosen.repeats)


@contextmanager
def scratch_experiment(patch: list[int], batch: int) -> Iterator[None]:
    """Provide nnU-Net's folders with a teacher of random weights while the context is open."""
    with tempfile.TemporaryDirectory() as scratch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            folder = Path(scratch) / variable / DATASET
            folder.mkdir(parents=True)
            os.environ[variable] = str(folder.parent)
        (Path(scratch) / "nnUNet_preprocessed" / DATASET / "none").mkdir()
        (Path(scratch) / "nnUNet_preprocessed" / DATASET / "none" / "case.b2nd").touch()

        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # reads the folders when imported

        content, device = plans(patch, batch), torch.device("cpu")
        stock = nnUNetTrainer({**content, "continue_training": False}, "3d_fullres", 0, DATASET_JSON, device)
        stock.initialize()
        results = Path(stock.output_folder_base)
        (results / "plans.json").write_text(json.dumps(content))
        (results / "dataset.json").write_text(json.dumps(DATASET_JSON))
        stock.save_checkpoint(str(results / "fold_0" / "checkpoint_final.pth"))
        yield


def run(patch: list[int], batch: int, repeats: int, methods: Sequence[str] = METHODS) -> None:
    """Time a training step of every method beside NoKD, and print seconds and ratios."""
    alone = trainer("NoKD", patch, batch)
    distilled = {name: trainer(name, patch, batch) for name in methods}
    if "FreeKD" in methods:
        distilled["FreeKD prompts"] = trainer("FreeKD", patch, batch)
    for name, one in distilled.items():
        one.current_epoch = 0 if name == "FreeKD prompts" else one.num_epochs - 1  # past ramps and tuning
    step = random_batch(patch, batch)
    images = step["data"]
    candidates = {"NoKD": lambda: alone.train_step(step)}
    for name, one in distilled.items():
        reads_logits = any(term.reads_logits for term in one.preparation.terms)
        candidates[f"{name} teacher"] = lambda one=one, logits=reads_logits: one.distiller.teacher(images, logits)
        candidates[name] = lambda one=one: one.train_step(step)
    seconds = medians(candidates, repeats)
    print(f"\n{torch.get_num_threads()} threads, batch {batch}, patch {patch}, teacher widths 32..320, student 8..80")
    for name in distilled:
        needed = seconds["NoKD"] + seconds[f"{name} teacher"]
        print(
            f"{name}: step {seconds[name]:.3f} s; student alone {seconds['NoKD']:.3f} s, needed teacher forward "
            f"{seconds[f'{name} teacher']:.3f} s; ratio {seconds[name] / needed:.2f}"
        )


def compare_others(patch: list[int], batch: int, repeats: int) -> None:
    """Print the times of methods without a teacher in the step."""
    compare_soft_labels(patch, batch, repeats)
    for reduction, widths in ((1, "32..320"), (4, "8..80")):
        compare_self_distillation(patch, batch, repeats, reduction, widths)


def compare_soft_labels(patch: list[int], batch: int, repeats: int) -> None:
    """Print the time of a training step with stored soft labels and without."""
    store_soft_labels(patch)
    alone, soft = trainer("NoKD", patch, batch), trainer("SoftKD", patch, batch)
    step = random_batch(patch, batch)
    stored = torch.cat([step["data"], torch.randn(batch, 4, *patch), torch.ones(batch, 1, *patch)], 1)
    taught = {**step, "data": stored}
    seconds = medians({"NoKD": lambda: alone.train_step(step), "SoftKD": lambda: soft.train_step(taught)}, repeats)
    print(
        f"SoftKD: step {seconds['SoftKD']:.3f} s, alone {seconds['NoKD']:.3f} s, ratio "
        f"{seconds['SoftKD'] / seconds['NoKD']:.2f}"
    )


def store_soft_labels(patch: list[int]) -> None:
    """Write one preprocessed case and its soft labels, without which the trainer does not start."""
    import numpy as np
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    from nnunet_kd.nnunet.cases import PreprocessedCases
    from nnunet_kd.nnunet.experiment import Experiment
    from nnunet_kd.teachers.soft_labels import SoftLabelStore, make_soft_labels, store_folder

    folder = Path(nnUNet_preprocessed.require()) / DATASET
    (folder / "none" / "case.b2nd").unlink()
    image, labels = np.zeros((4, *patch), np.float32), np.zeros((1, *patch), np.int16)
    nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": {}}, str(folder / "none" / "case"))
    cases = PreprocessedCases(folder, Experiment(plans(patch, 1), "3d_fullres", DATASET_JSON))
    store = SoftLabelStore(store_folder(folder, "none", "random"))
    store.begin(cases.data, {}, cases.identifiers)
    make_soft_labels(store, cases, cases.identifiers, lambda _: np.zeros((4, *patch)))


def random_batch(patch: list[int], batch: int) -> dict[str, Any]:
    """Return a batch of random images, with targets at every scale of deep supervision."""
    scales = [[size // 2**level for size in patch] for level in range(4)]
    targets = [torch.randint(0, 4, (batch, 1, *scale)).float() for scale in scales]
    return {"data": torch.randn(batch, 4, *patch), "target": targets}


def compare_self_distillation(patch: list[int], batch: int, repeats: int, reduction: float, widths: str) -> None:
    """Print time and memory of a training step with and without self-distillation."""
    names = ("NoKD", "DualSelfKD")
    step = random_batch(patch, batch)
    trainers = {name: trainer(name, patch, batch, reduction) for name in names}
    seconds = medians({name: lambda one=one: one.train_step(step) for name, one in trainers.items()}, repeats)
    peaks = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_of_a_step, name, patch, batch, reduction).result() / 2**20
    print(
        f"DualSelfKD, widths {widths}: step {seconds['DualSelfKD']:.3f} s, alone {seconds['NoKD']:.3f} s, ratio "
        f"{seconds['DualSelfKD'] / seconds['NoKD']:.2f}; peak memory {peaks['DualSelfKD']:.0f} MB, alone "
        f"{peaks['NoKD']:.0f} MB, ratio {peaks['DualSelfKD'] / peaks['NoKD']:.2f}"
    )


def peak_of_a_step(name: str, patch: list[int], batch: int, reduction: float) -> int:
    """Return the peak bytes of three steps beyond what the process held once the network existed."""
    from nnunet_kd.evaluation.measure import peak_memory, start_of_peak

    one, step = trainer(name, patch, batch, reduction), random_batch(patch, batch)
    before = start_of_peak("cpu")
    for _ in range(3):
        one.train_step(step)
    return peak_memory("cpu") - before


if __name__ == "__main__":
    main()
