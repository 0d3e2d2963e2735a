"""Compare nnUNetv2_predict with nnunet_kd predict on the CPU, on the same student, cases and options.

    python benchmarks/inference.py -d 4 -tr nnUNetTrainerDCD --images DIR --labels DIR [--cases 8] [--repeats 5]
                                   [--disable_tta] [--teacher nnUNetTrainer__nnUNetPlans__3d_fullres]

Every command runs in a process of its own, and the commands take turns. "Whole" is the time of one command on all
cases. "Steady" is the time per further case, from a command on all cases and one on the first case alone. The memory is
the peak of all processes of a command together, with shared pages counted once (Linux). The Dice is measured against
the labels, and "equal voxels" are those with the label that the stock prediction of the same student has.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunet_kd.cli.dataset_folder import dataset_name
from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.trained import read_trained
from nnunet_kd.evaluation.folders import evaluate_folders
from nnunet_kd.evaluation.protocol import read_evaluation


def main() -> None:
    """Read the arguments and measure in a temporary folder."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-d", required=True)
    options.add_argument("-tr", default="nnUNetTrainerDCD")
    options.add_argument("-p", default="nnUNetPlans")
    options.add_argument("-c", default="3d_fullres")
    options.add_argument("-f", default="0")
    options.add_argument("--images", type=Path, required=True)
    options.add_argument("--labels", type=Path, required=True)
    options.add_argument("--cases", type=int, default=8)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--disable_tta", action="store_true")
    options.add_argument("--teacher", help="results folder of a teacher to measure too, with its stock prediction")
    chosen = options.parse_args()
    student = Path(get_output_folder(dataset_name(chosen.d), chosen.tr, chosen.p, chosen.c))
    with tempfile.TemporaryDirectory() as scratch:
        run(chosen, student, Path(scratch))


def run(chosen: argparse.Namespace, student: Path, scratch: Path) -> None:
    """Measure every command, and print a line for each."""
    model = read_trained(student, [chosen.f])
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

    def stock(folder: Path) -> list[str]:
        trainer, plans, configuration = folder.name.split("__")
        words = ["nnUNetv2_predict", "-d", chosen.d, "-c", configuration, "-tr", trainer, "-p", plans, "-f", chosen.f]
        return [*words, "-device", "cpu", *shared]

    commands = {"stock, student": stock(student)}
    for engine in ("onnxruntime", "openvino"):
        commands[engine] = ["nnunet_kd", "predict", "-m", str(scratch / "onnx"), "--engine", engine, *shared]
    if chosen.teacher:
        commands["stock, teacher"] = stock(student.with_name(chosen.teacher))

    seconds: dict[tuple[str, int], list[float]] = {}
    memory: dict[str, int] = {}
    for _ in range(chosen.repeats):
        for name, words in commands.items():
            for count, images in folders.items():
                out = scratch / f"{name.replace(', ', '_')}_{count}"
                taken, peak = timed([*words, "-i", str(images), "-o", str(out)])
                seconds.setdefault((name, count), []).append(taken)
                memory[name] = max(memory.get(name, 0), peak)

    first = scratch / f"stock_student_{len(cases)}"
    print(
        f"{len(cases)} cases, median of {chosen.repeats}, {len(os.sched_getaffinity(0))} cores, mirroring "
        f"{'off' if chosen.disable_tta else 'on'}"
    )
    for name in commands:
        whole = statistics.median(seconds[name, len(cases)])
        steady = (whole - statistics.median(seconds[name, 1])) / (len(cases) - 1)
        reference = statistics.median(seconds["stock, student", len(cases)])
        reference_steady = (reference - statistics.median(seconds["stock, student", 1])) / (len(cases) - 1)
        out = scratch / f"{name.replace(', ', '_')}_{len(cases)}"
        print(
            f"{name:<15} whole {whole:6.1f} s ({reference / whole:5.2f}x)  steady {steady:6.3f} s per case "
            f"({reference_steady / steady:5.2f}x)  {memory[name] / 2**20:5.0f} MiB  "
            f"Dice {dice(model, cases, ending, chosen.labels, out, scratch):.4f}  "
            f"equal voxels {100 * equal(cases, ending, first, out):.4f} %"
        )


def timed(words: list[str]) -> tuple[float, int]:
    """Run a command; return its seconds and the peak bytes of all its processes, sampled ten times per second."""
    program = Path(sys.executable).with_name(words[0])
    start = time.perf_counter()
    process = subprocess.Popen([str(program), *words[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(map(proportional_set, family(process.pid))))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.wait()
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed: {said}")
    return seconds, peak


def family(process: int) -> list[int]:
    """Return a process and all its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(one for child in children for one in family(int(child)))]


def proportional_set(process: int) -> int:
    """Return the bytes that a process holds, including its share of shared pages."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def dice(model: object, cases: list[str], ending: str, labels: Path, out: Path, scratch: Path) -> float:
    """Return the mean Dice over cases and structures."""
    folders = {"reference": labels, "predicted": out}
    for name, source in folders.items():
        folders[name] = scratch / f"{name}_{out.name}"
        folders[name].mkdir()
        for case in cases:
            (folders[name] / f"{case}{ending}").symlink_to((source / f"{case}{ending}").resolve())
    experiment = model.experiment  # type: ignore[attr-defined]
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
