"""Compare the precisions of an exported model on the CPU: seconds, size and Dice, on the same cases in turn.

    python benchmarks/inference_precision.py -m FOLDER --images DIR --labels DIR [--cases 40] [--disable_tta]
                                             [--engine openvino] [--threads N]

FOLDER is the results folder of a model, TRAINER__PLANS__CONFIGURATION. The cases are those that fold 0 was validated
on, where its summary.json names them, and int8 is calibrated on the other images. Every case is predicted in each
precision before the next one. "Engine" is the median time of one patch. bf16 is the network in fp32 that OpenVINO
computes in bfloat16, where the processor can.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.trained import TrainedModel, read_trained
from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation
from nnunet_kd.nnunet.images import images_by_case, link_cases
from nnunet_kd.runtime.cases import find_cases
from nnunet_kd.runtime.model import Model
from nnunet_kd.runtime.predictor import predict_cases


def main() -> None:
    """Read the arguments and measure in a temporary folder."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-m", type=Path, required=True)
    options.add_argument("--images", type=Path, required=True)
    options.add_argument("--labels", type=Path, required=True)
    options.add_argument("--cases", type=int, default=40)
    options.add_argument("--disable_tta", action="store_true")
    options.add_argument("--engine", default="openvino")
    options.add_argument("--threads", type=int)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(chosen, Path(scratch))


def run(chosen: argparse.Namespace, scratch: Path) -> None:
    """Export every precision, predict the cases, and print a line for each."""
    model = read_trained(chosen.m, ["0"])
    ending = model.experiment.dataset_json["file_ending"]
    every = images_by_case(chosen.images, ending)
    names = sorted(validated(chosen.m) & set(every)) or sorted(every)
    names = names[: chosen.cases]
    folders = {"cases": names, "others": sorted(set(every) - validated(chosen.m) - set(names))}
    for folder, some in folders.items():
        link_cases(scratch / folder, {case: list(every[case].values()) for case in some})
    link_cases(scratch / "labels", {case: [chosen.labels / f"{case}{ending}"] for case in names})
    start = time.perf_counter()
    export_onnx(model, scratch / "fp32")
    after = time.perf_counter()
    export_onnx(model, scratch / "int8", "int8", calibration=scratch / "others")
    print(f"calibration took {time.perf_counter() - after - (after - start):.0f} s more than the export in fp32")
    models: dict[str, Model] = {}
    for name, folder, bf16 in (("fp32", "fp32", False), ("bf16", "fp32", True), ("int8", "int8", False)):
        try:
            models[name] = Model(
                scratch / folder, chosen.engine, chosen.threads, mirroring=not chosen.disable_tta, bf16=bf16
            )
        except ValueError as error:
            print(f"{name}: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for case in find_cases(scratch / "cases", scratch, ending, len(model.experiment.dataset_json["channel_names"])):
        for name, one in models.items():
            start = time.perf_counter()
            predict_cases(one, [type(case)(case.name, case.images, scratch / f"by_{name}" / case.name)])
            seconds[name].append(time.perf_counter() - start)
    patch = np.random.default_rng(0).normal(size=(1, len(every[names[0]]), *models["fp32"].model.patch_size))
    engine: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(15):
        for name, one in models.items():
            start = time.perf_counter()
            one.engines[0](patch.astype(np.float32))
            engine[name].append(time.perf_counter() - start)
    print(
        f"{len(names)} cases with {chosen.engine}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}, mirroring {'off' if chosen.disable_tta else 'on'}"
    )
    for name in models:
        folder = scratch / ("int8" if name == "int8" else "fp32")
        size = sum(file.stat().st_size for file in folder.glob("*.onnx")) / 2**20
        print(
            f"{name}  {sum(seconds[name]):7.1f} s  engine {1000 * statistics.median(engine[name]):6.0f} ms per patch  "
            f"{size:6.2f} MiB  Dice {dice(model, scratch / 'labels', scratch / f'by_{name}', ending):.4f}"
        )


def validated(model: Path) -> set[str]:
    """Return the cases that fold 0 was validated on, as far as its summary names them."""
    path = model / "fold_0" / "validation" / "summary.json"
    if not path.is_file():
        return set()
    cases = json.loads(path.read_text())["metric_per_case"]
    return {Path(case["prediction_file"]).name.partition(".")[0] for case in cases}


def dice(model: TrainedModel, references: Path, predicted: Path, ending: str) -> float:
    """Return the mean Dice over cases and structures."""
    experiment = model.experiment
    example = next(references.glob(f"*{ending}"))
    evaluation = read_evaluation(experiment.dataset_json, experiment.plans, example, 1.0)
    rows = evaluate_folders(references, {"model": predicted}, evaluation, 1)
    return float(np.nanmean([row.values["dice"] for row in rows]))


if __name__ == "__main__":
    main()
