"""Distil with and without labels on real volumes, and write what comes out to label_free.md.

    python benchmarks/label_free.py --raw nnUNet_raw --work WORK [--teachers FOLDER] [--only hippocampus/r4] [--seeds 0]

The cases of fold 0's training part are split in two halves (by patient, seeded). A teacher of full width learns from
the first half, and students learn from the first half with its labels, from the images of the other half, the pool,
whose labels nobody reads, or from both. All are scored on fold 0's validation cases. Everything is made by commands of
nnU-Net and nnunet_kd. A finished run is a line of label_free.json, and is not repeated; a stopped one is continued.

--only takes names of runs or their beginnings (--list shows all). --teachers holds results folders of stock teachers of
fold 0 by data set, for the runs with a missing modality; without it, such a teacher is trained. --quick tries the
whole chain with trainings of four steps, and keeps its record in WORK. Without --raw, only label_free.md is written.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from label_free_page import page
from label_free_place import (
    CONFIGURATION,
    DISTILLED,
    DISTILLED_PLANS,
    HALF,
    POOL,
    REST,
    TEST,
    TUNING,
    UNSEEN,
    WHOLE_FOLD,
    Data,
    Place,
    parameters,
)

from nnunet_kd.evaluation.statistics import mean_of_runs
from nnunet_kd.nnunet.checkpoint import read_checkpoint
from nnunet_kd.nnunet.reading import read_json, read_plans
from nnunet_kd.storage.writing import write_whole

HERE = Path(__file__).parent
RECORD = HERE / "label_free.json"
SEEDS = (0, 1, 2)
TEACHER_SEED = 7
PLAIN, KD = "nnUNetTrainerNoKD", "nnUNetTrainerKD"  # PLAIN is nnU-Net's trainer with a schedule and a seed
DATA = {
    "hippocampus": Data("Dataset004_Hippocampus", {"epochs": 16, "iterations": 50}, {"epochs": 20, "iterations": 50}),
    "brats": Data(
        "Dataset021_BraTSPatches",
        {"epochs": 12, "iterations": 60},
        {"epochs": 15, "iterations": 60},
        seen=(1, 3),
        patient_ends="_lesion",
    ),
}


@dataclass(frozen=True)
class Made:
    """What a run has made.

    Attributes:
        model: The results folder of the model.
        folds: Its folds.
        trained: The schedule of its training.
        segmentations: The folder of its segmentations.
        more: What else is recorded.
    """

    model: Path
    folds: Sequence[int]
    trained: Mapping[str, int]
    segmentations: Path
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run of the study.

    Attributes:
        make: The function that makes it, of the place and the seed.
        reduction: The factor that divides the widths.
        seeds: Its seeds.
        scored_on: The group of cases that it is scored on.
    """

    make: Callable[[Place, int], Made]
    reduction: int
    seeds: Sequence[int] = SEEDS
    scored_on: str = TEST


def of_fold(place: Place, model: Path, fold: int, trained: Mapping[str, int]) -> Made:
    """Return a model whose segmentations are those of nnU-Net's validation."""
    return Made(model, [fold], trained, model / f"fold_{fold}" / "validation")


def teacher(place: Place, seed: int, fold: int = 0, shorter: int = 1) -> Made:
    """Train a teacher of full width on a fold's cases."""
    trained = place.schedule({**place.data.teacher, "epochs": place.data.teacher["epochs"] // shorter})
    name = "label_free_teacher" + (f"_{shorter}_times_shorter" if shorter > 1 else "")
    block = {"training": {**trained, "seed": TEACHER_SEED}}
    return of_fold(place, place.train(PLAIN, name, fold, 1, block), fold, trained)


def with_labels(
    place: Place,
    seed: int,
    reduction: int,
    trainer: str,
    fold: int = 0,
    taught_by: Callable[[Place], Made] | None = None,
) -> Made:
    """Train a student on a fold's cases with their labels."""
    model = taught_by(place) if taught_by else teacher(place, TEACHER_SEED)
    place.seconds = 0.0  # those of the teacher are not the student's
    trained = place.schedule(place.data.student)
    source = {"folder": str(model.model), "folds": list(model.folds)}
    block = {"training": {**trained, "seed": seed}, "teacher": source}
    plans = f"label_free_r{reduction}_seed{seed}" + (f"_fold{fold}" if fold else "")
    return of_fold(place, place.train(trainer, plans, fold, reduction, block), fold, trained)


def distilled(
    place: Place,
    seed: int,
    reduction: int,
    name: str,
    groups: Sequence[str],
    labelled: Sequence[str] = (),
    words: Sequence[str] = (),
    method: Mapping[str, Any] | None = None,
    scored_on: str = TEST,
    taught_by: Callable[[Place], Made] | None = None,
    channels: Sequence[int] | None = None,
) -> Made:
    """Distil the teacher into a student with the images of some groups, and the labels of some of them."""
    model = taught_by(place) if taught_by else teacher(place, TEACHER_SEED)
    place.seconds = 0.0
    left_out = TUNING if scored_on == TUNING else ""
    out = place.work / "distilled" / f"{name}_r{reduction}_seed{seed}"
    cases, references = (place.cases(*some, without=left_out) for some in (groups, labelled))
    student = place.distill(out, model.model, model.folds, cases, references, reduction, seed, words, method)
    images = place.images(place.groups[scored_on], channels)
    segmentations = place.segment(student, [0], images, out / f"segmentations_{scored_on}")
    return Made(student, [0], place.schedule(place.data.student), segmentations)


def timed(place: Place, seed: int, make: Callable[[Place, int], Made]) -> Made:
    """Return a student with the seconds that stock nnU-Net and ``nnunet_kd predict`` need for the test cases."""
    made = make(place, seed)
    images = place.images(place.groups[TEST])
    onnx = made.model / "onnx"
    if not onnx.is_dir():
        place.command("nnunet_kd", "export", "onnx", "-m", str(made.model), "-f", "0", "-o", str(onnx))
    commands = {
        "nnUNetv2_predict": ["nnUNetv2_predict_from_modelfolder", "-f", "0", "-npp", "1", "-nps", "1", *place.on],
        "nnunet_kd predict": ["nnunet_kd", "predict"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    out = place.work / "timed"
    for _ in range(2):  # the commands take turns
        for name, words in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            model = made.model if words[0] != "nnunet_kd" else onnx
            place.command(*words, "-m", str(model), "-i", str(images), "-o", str(out))
            seconds[name].append(round(time.perf_counter() - started, 1))
    least = {name: min(values) for name, values in seconds.items()}
    return replace(made, more={"predicted_in": least, "voxels": place.voxels(made.model, place.groups[TEST])})


def folds(place: Place, chosen: str = "all") -> Made:
    """Train five short teachers on all cases but those of the test, and return them or the best of them."""
    five = [teacher(place, TEACHER_SEED, fold, shorter=4) for fold in range(1, 6)]
    if chosen == "all":
        return replace(five[0], folds=[1, 2, 3, 4, 5])
    own = [read_json(one.segmentations / "summary.json")["foreground_mean"]["Dice"] for one in five]
    return five[int(np.argmax(own))]


def timed_teachers(place: Place, seed: int, chosen: str) -> Made:
    """Segment the test cases with the five teachers, or with the best by its own validation, and take the time."""
    made = folds(place, chosen)
    images, out = place.images(place.groups[TEST]), place.work / f"segmentations_folds_{chosen}"
    started = time.perf_counter()
    segmentations = place.segment(made.model, made.folds, images, out)
    return replace(
        made,
        segmentations=segmentations,
        more={"predicted_in": {"nnUNetv2_predict": round(time.perf_counter() - started, 1)}},
    )


def of_whole_fold(place: Place, seed: int = TEACHER_SEED) -> Made:
    """Return the given stock teacher of fold 0, or train one on all of fold 0's training cases."""
    if place.given is None:
        return teacher(place, TEACHER_SEED, WHOLE_FOLD)
    images = place.images(place.groups[TEST])
    segmentations = place.segment(place.given, [0], images, place.work / "segmentations_given_teacher")
    epochs = read_checkpoint(place.given / "fold_0" / "checkpoint_final.pth")["current_epoch"]
    return Made(place.given, [0], {"num_epochs": int(epochs)}, segmentations)


def fewer_channels(place: Place, seed: int) -> Made:
    """Train a student without a teacher on the cases of :func:`fewer_channels_distilled`."""
    out = place.work / "distilled" / f"modality_r4_seed{seed}"
    fewer_channels_distilled(place, seed)
    trained, name = place.schedule(place.data.student), "label_free_nokd"
    folder = out / "nnUNet_preprocessed" / DISTILLED
    plans = read_plans(folder / f"{DISTILLED_PLANS}.json")
    student = plans["nnunet_kd"]["student"]
    plans |= {"plans_name": name, "nnunet_kd": {"student": student, "training": {**trained, "seed": seed}}}
    write_whole(folder / f"{name}.json", json.dumps(plans, indent=2))
    model = out / "nnUNet_results" / DISTILLED / f"{PLAIN}__{name}__{CONFIGURATION}"
    if not (model / "fold_0" / "validation" / "summary.json").is_file():
        begun = ["--c"] if any((model / "fold_0").glob("checkpoint_*.pth")) else []
        words = [DISTILLED, CONFIGURATION, "0", "-tr", PLAIN, "-p", name, *place.on, *begun]
        place.command("nnUNetv2_train", *words, within=out)
    images = place.images(place.groups[TEST], place.data.seen)
    return Made(model, [0], trained, place.segment(model, [0], images, out / "segmentations_nokd"))


def fewer_channels_distilled(place: Place, seed: int) -> Made:
    """Distil a teacher that sees all channels into a student that sees some of them, with all labels."""
    words = ["--channels", *map(str, place.data.seen)]
    both = (HALF, POOL)
    return distilled(place, seed, 4, "modality", both, both, words, taught_by=of_whole_fold, channels=place.data.seen)


def runs() -> dict[str, Run]:
    """Return all runs by name, in the order in which they are made."""
    every: dict[str, Run] = {}
    for name in DATA:
        every[f"{name}/teacher"] = Run(teacher, 1, (TEACHER_SEED,))
        for r in (4, 8):
            every[f"{name}/r{r}/pool"] = Run(partial(distilled, reduction=r, name="pool", groups=[POOL]), r)
            every[f"{name}/r{r}/nokd"] = Run(partial(with_labels, reduction=r, trainer=PLAIN), r)
            every[f"{name}/r{r}/kd"] = Run(partial(with_labels, reduction=r, trainer=KD), r)
            both = partial(distilled, reduction=r, name="both", groups=[HALF, POOL], labelled=[HALF])
            every[f"{name}/r{r}/both"] = Run(both, r)
        every[f"{name}/older"] = Run(of_whole_fold, 1, (TEACHER_SEED,), REST)
        for r in (4, 8):
            unseen = {"reduction": r, "scored_on": REST, "taught_by": of_whole_fold}
            images = partial(distilled, name="unseen", groups=[UNSEEN], **unseen)
            whole = [HALF, POOL]
            both = partial(distilled, name="all", groups=[*whole, UNSEEN], labelled=whole, **unseen)
            labels = partial(with_labels, reduction=r, fold=WHOLE_FOLD, taught_by=of_whole_fold)
            every[f"{name}/unseen/r{r}/pool"] = Run(images, r, SEEDS, REST)
            every[f"{name}/unseen/r{r}/nokd"] = Run(partial(labels, trainer=PLAIN), r, SEEDS, REST)
            every[f"{name}/unseen/r{r}/kd"] = Run(partial(labels, trainer=KD), r, SEEDS, REST)
            every[f"{name}/unseen/r{r}/both"] = Run(both, r, SEEDS, REST)
    pool = partial(distilled, reduction=4, groups=[POOL])
    coarse = partial(pool, name="pool_1.5mm", words=["--spacing", "1.5", "1.5", "1.5"])
    every["hippocampus/spacing/1.0"] = Run(partial(timed, make=partial(pool, name="pool")), 4, (0,))
    every["hippocampus/spacing/1.5"] = Run(partial(timed, make=coarse), 4, (0,))
    for weight, temperature in ((0.5, 3.0), (1.0, 3.0), (0.5, 1.0)):
        tuned = {"weight": weight, "temperature": temperature}
        name = f"tuning_{weight:g}_{temperature:g}"
        tuning = partial(pool, name=name, method=tuned, scored_on=TUNING)
        every[f"hippocampus/tuning/{weight:g}_{temperature:g}"] = Run(tuning, 4, (0,), TUNING)
    for chosen in ("all", "best"):
        every[f"hippocampus/folds/{chosen}"] = Run(partial(timed_teachers, chosen=chosen), 1, (TEACHER_SEED,))
    five = {"groups": [HALF, POOL], "labelled": [HALF, POOL], "taught_by": folds}
    every["hippocampus/folds/student"] = Run(
        partial(timed, make=partial(distilled, reduction=4, name="folds", **five)), 4, (0,)
    )
    every["brats/modality/teacher"] = Run(of_whole_fold, 1, (TEACHER_SEED,))
    every["brats/modality/distilled"] = Run(fewer_channels_distilled, 4, (0,))
    every["brats/modality/nokd"] = Run(fewer_channels, 4, (0,))
    return every


def carry_out(name: str, run: Run, seed: int, place: Place, record: Path) -> None:
    """Make and score a run, and add a line to the record."""
    place.seconds = 0.0
    made = run.make(place, seed)
    seconds = place.seconds
    dice = place.score(f"{name}_seed{seed}".replace("/", "_"), made.segmentations, place.groups[run.scored_on])
    each = {structure: np.array(values, dtype=np.float64) for structure, values in dice.items()}
    of_cases = mean_of_runs(np.stack(list(each.values())))  # over the structures that have a value
    entry = {
        "run": name,
        "data": place.data.folder,
        "reduction": run.reduction,
        "seed": seed,
        "schedule": {
            "epochs": made.trained["num_epochs"],
            "iterations": made.trained.get("num_iterations_per_epoch"),  # unknown of a teacher that was given
        },
        "scored_on": run.scored_on,
        "dice": round(float(np.nanmean(of_cases)), 5),
        "structures": {structure: round(float(np.nanmean(values)), 5) for structure, values in each.items()},
        "cpu_seconds": None if math.isnan(seconds) else round(seconds),
        "parameters": parameters(made.model) * len(made.folds),
        **made.more,
        "per_case": dice,
    }
    content = read_record(record)
    content["cases"][place.data.folder] = place.groups
    content["runs"].append(entry)
    write_record(record, content)
    print(f"{name}, seed {seed}: Dice {100 * entry['dice']:.2f}", flush=True)


def read_record(path: Path) -> dict[str, Any]:
    """Return the record, which is empty at first."""
    return read_json(path) if path.is_file() else {"cases": {}, "runs": []}


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write the record, one line per data set and per run."""
    cases = ",\n".join(f"{json.dumps(name)}: {json.dumps(groups)}" for name, groups in content["cases"].items())
    lines = ",\n".join(map(json.dumps, content["runs"]))
    write_whole(path, f'{{"cases": {{\n{cases}\n}},\n"runs": [\n{lines}\n]}}\n')


def main() -> None:
    """Carry out the missing runs, then write the page and print it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--raw", type=Path, help="nnU-Net's folder nnUNet_raw")
    options.add_argument("--work", type=Path, help="folder for everything else")
    options.add_argument("--teachers", type=Path, help="results folders of stock teachers of fold 0")
    options.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="runs, or how their names begin")
    options.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds of the students (default: 0 1 2)")
    options.add_argument("--quick", action="store_true", help="try the chain with trainings of four steps")
    options.add_argument("--list", action="store_true", help="print the names of all runs")
    options.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    chosen = options.parse_args()
    if (chosen.raw is None) != (chosen.work is None):
        options.error("--raw and --work must be given together")
    every = runs()
    if chosen.list:
        print("\n".join(every))
        return
    record = chosen.work / "label_free.json" if chosen.quick else RECORD
    for name, run in every.items() if chosen.raw else ():
        data = DATA[name.partition("/")[0]]
        for seed in run.seeds:
            wanted = seed == TEACHER_SEED or seed in chosen.seeds
            done = any((one["run"], one["seed"]) == (name, seed) for one in read_record(record)["runs"])
            if wanted and not done and name.startswith(tuple(chosen.only)):
                carry_out(
                    name,
                    run,
                    seed,
                    Place(data, chosen.raw, chosen.work, chosen.teachers, chosen.device, chosen.quick),
                    record,
                )
    text = page(read_record(record), {name: run.seeds for name, run in every.items()})
    write_whole(record.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
