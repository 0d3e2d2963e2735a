"""Compare nnUNetv2_predict with nnunet_kd predict on the CPU, on the same model, cases and options.

    python benchmarks/inference.py -m FOLDER --images DIR [--labels DIR] [--untrained 4] [--cases 10] [--repeats 3]
                                   [--disable_tta] [--defaults]

FOLDER is the results folder of a model, TRAINER__PLANS__CONFIGURATION. With --untrained R, a student is measured that
has 1/R of its widths and random weights. Every command runs in a process of its own, and the commands take turns.
"Whole" is the time of one command on all cases. "Steady" is the time per further case, from a command on all cases and
one on the first case alone. "Engine" is the time that the engine alone needs for the same windows and mirrored copies.
Stock nnU-Net runs with -npp 1 -nps 1 and, with --defaults, also as it is. The Dice is measured against the labels, and
"equal voxels" are those with the label that the stock prediction has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from processes import run_measured

from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.trained import TrainedModel, read_trained
from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.runtime.cases import find_cases, prepare_case
from nnunet_kd.runtime.model import Model


def main() -> None:
    """Read the arguments and measure in a temporary folder."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-m", type=Path, required=True)
    options.add_argument("-f", default="0")
    options.add_argument("--untrained", type=int, metavar="R")
    options.add_argument("--images", type=Path, required=True)
    options.add_argument("--labels", type=Path)
    options.add_argument("--cases", type=int, default=10)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--disable_tta", action="store_true")
    options.add_argument("--defaults", action="store_true")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.m
        if chosen.untrained is not None:
            folder = untrained(chosen.m, chosen.untrained, Path(scratch) / chosen.m.name, chosen.f)
        run(chosen, folder, Path(scratch))


def run(chosen: argparse.Namespace, folder: Path, scratch: Path) -> None:
    """Measure every command, and print a line for each."""
    model = read_trained(folder, [chosen.f])
    export_onnx(model, scratch / "onnx")
    ending = model.experiment.dataset_json["file_ending"]
    cases = sorted(path.name[: -len(ending) - 5] for path in chosen.images.glob(f"*_0000{ending}"))[: chosen.cases]
    folders = {}
    for count in (1, len(cases)):
        folders[count] = scratch / f"images_{count}"
        folders[count].mkdir()
        for case in cases[:count]:
            for path in chosen.images.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"):
                shutil.copy(path, folders[count])

    shared = ["--disable_tta"] if chosen.disable_tta else []
    stock = ["nnUNetv2_predict_from_modelfolder", "-m", str(folder), "-f", chosen.f, "-device", "cpu", *shared]
    commands = {"stock": [*stock, "-npp", "1", "-nps", "1"]}
    if chosen.defaults:
        commands["stock, defaults"] = stock
    for engine in ("onnxruntime", "openvino"):
        commands[engine] = ["nnunet_kd", "predict", "-m", str(scratch / "onnx"), "--engine", engine, *shared]

    seconds: dict[tuple[str, int], list[float]] = {}
    memory: dict[str, int] = {}
    for _ in range(chosen.repeats):
        for name, words in commands.items():
            for count, images in folders.items():
                used = run_measured([*words, "-i", str(images), "-o", str(scratch / f"{name}_{count}")])
                if used.failed is not None:
                    raise SystemExit(f"{' '.join(words)} failed: {used.failed}")
                seconds.setdefault((name, count), []).append(used.seconds)
                memory[name] = max(memory.get(name, 0), used.peak)

    print(
        f"{len(cases)} cases, median of {chosen.repeats}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}, mirroring {'off' if chosen.disable_tta else 'on'}"
    )
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    for name in commands:
        whole, one = medians[name, len(cases)], medians[name, 1]
        steady = (whole - one) / (len(cases) - 1)
        out = scratch / f"{name}_{len(cases)}"
        alone = engine_alone(scratch / "onnx", folders[len(cases)], name, not chosen.disable_tta)
        accuracy = ""
        if chosen.labels is not None:
            accuracy = f"Dice {dice(model, cases, ending, chosen.labels, out, scratch):.4f}  "
        print(
            f"{name:<15} whole {whole:6.1f} s ({medians['stock', len(cases)] / whole:5.2f}x)  one case {one:5.1f} s  "
            f"steady {steady:6.3f} s per case  engine {alone}  {memory[name] / 2**20:5.0f} MiB  "
            f"{accuracy}equal voxels {100 * equal(cases, ending, scratch / f'stock_{len(cases)}', out):.4f} %"
        )


def untrained(model: Path, reduction: int, folder: Path, fold: str) -> Path:
    """Write a model with narrower stages and random weights."""
    import torch

    from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
    from nnunet_kd.nnunet.planning import student_plans

    plans = student_plans(json.loads((model / "plans.json").read_text()), reduction, name="nnUNetPlans")
    (folder / f"fold_{fold}").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(model / "dataset.json", folder)
    configuration = model.name.split("__")[-1]
    described = json.loads((model / "dataset.json").read_text())
    torch.manual_seed(0)
    network = build_network(find_trainer("nnUNetTrainer"), Experiment(plans, configuration, described))
    axes = tuple(range(len(plans["configurations"][configuration]["patch_size"])))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": axes,
    }
    torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def engine_alone(onnx: Path, images: Path, name: str, mirroring: bool) -> str:
    """Return the seconds that the engine needs for all windows of all cases, measured on the first of them."""
    if name.startswith("stock"):
        return "      -"
    model = Model(onnx, name, mirroring=mirroring)
    pipeline = model.pipeline
    windows = 0
    for case in find_cases(images, images, pipeline.file_ending, len(pipeline.channels)):
        image, _ = prepare_case(case, pipeline)
        windows += int(np.prod([len(starts) for starts in model.window.starts(image.shape[1:])]))
    patch = np.zeros((1, len(pipeline.channels), *model.model.patch_size), np.float32)
    taken = []
    for _ in range(30):
        start = time.perf_counter()
        model.engines[0](patch)
        taken.append(time.perf_counter() - start)
    return f"{windows * model.copies * statistics.median(taken):5.1f} s"


def dice(model: TrainedModel, cases: list[str], ending: str, labels: Path, out: Path, scratch: Path) -> float:
    """Return the mean Dice over cases and structures."""
    folders = {"reference": labels, "predicted": out}
    for name, source in folders.items():
        folders[name] = scratch / f"{name}_{out.name}"
        folders[name].mkdir()
        for case in cases:
            (folders[name] / f"{case}{ending}").symlink_to((source / f"{case}{ending}").resolve())
    experiment = model.experiment
    example = folders["reference"] / f"{cases[0]}{ending}"
    evaluation = read_evaluation(experiment.dataset_json, experiment.plans, example, 1.0)
    rows = evaluate_folders(folders["reference"], {"model": folders["predicted"]}, evaluation, 1)
    return float(np.nanmean([row.values["dice"] for row in rows]))


def equal(cases: list[str], ending: str, first: Path, second: Path) -> float:
    """Return the share of voxels with the same label, over all cases."""
    same = [
        np.equal(
            *(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}{ending}"))) for folder in (first, second))
        )
        for case in cases
    ]
    return float(np.mean(np.concatenate([array.ravel() for array in same])))


if __name__ == "__main__":
    main()
