"""The parts of the study: data sets, schedules and rows, and the sweep from which the defaults were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from nnunet_kd.distillation.methods import build_terms
from nnunet_kd.nnunet.experiment import find_trainer
from nnunet_kd.study.ablations import ABLATIONS

SEEDS = (0, 1, 2)
BASELINE = "NoKD"
STRONG = "DCD, weight 1"


@cache
def trainer_class(method: str) -> Any:
    """Return the trainer class of a method, cached because nnU-Net searches all of its files for it each time."""
    return find_trainer(f"nnUNetTrainer{method}")


def at_once(weight: float) -> dict[str, Any]:
    """Return settings that give a method its full weight from the first epoch."""
    return {"weight": weight, "ramp": None}


METHODS: dict[str, Any] = {
    BASELINE: {"trainer": BASELINE},
    "NoKD, averaged": {"trainer": BASELINE, "training": {"ema_decay": 0.99}},  # as in KD's recipe
    **{name: {"trainer": name} for name in ("LogitsKD", "FitNets", "CWD", "IFVD", "FreeKD", "DCD")},
    STRONG: {"trainer": "DCD", "method": at_once(1.0)},
    "DualSelfKD": {"trainer": "DualSelfKD"},
    "DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
    "KD": {"trainer": "KD"},
}
LOGITS = {"name": "logits", "temperature": 1.0, "weight": 0.5}


@dataclass(frozen=True)
class Data:
    """A data set of the study.

    Attributes:
        folder: The name of its folder.
        cases: The number of its cases.
        patch: The patch size of training, in voxels.
        teachers: The schedule of the teacher of every fold that is used.
        student: The schedule of every student.
        patient_ends: The text that follows a patient's name in the names of cases; empty if every case is a patient.
        about_distances: A note on surface distances, for the report.
    """

    folder: str
    cases: int
    patch: str
    teachers: Mapping[int, Mapping[str, Any]]
    student: Mapping[str, Any]
    patient_ends: str = ""
    about_distances: str = ""

    def patients(self, cases: Sequence[str]) -> int:
        """Return the number of patients that these cases belong to."""
        return len({case.partition(self.patient_ends)[0] if self.patient_ends else case for case in cases})


@dataclass(frozen=True)
class Part:
    """A part of the study: a data set, a reduction, and rows.

    Attributes:
        title: The title in study.md.
        short: The heading in the first table of study.md; empty if the part is not in that table.
        data: The key of :data:`DATA`.
        reduction: The factor by which the student's widths are reduced.
        rows: The rows, as in a file for ``--rows``; the first is the baseline.
        fold: The fold whose cases are evaluated.
        seeds: The seeds of every row.
        training: The schedule where it differs from that of the data set's students.
        precision: The teacher's precision while a student trains; ``None`` for the student's.
    """

    title: str
    short: str
    data: str
    reduction: int
    rows: Mapping[str, Any]
    fold: int = 0
    seeds: Sequence[int] = SEEDS
    training: Mapping[str, Any] = field(default_factory=dict)
    precision: str | None = None

    @property
    def baseline(self) -> str:
        """The row with which the others are compared."""
        return next(iter(self.rows))

    @property
    def schedule(self) -> dict[str, Any]:
        """The schedule of every student whose row sets no other."""
        return {**DATA[self.data].student, **self.training}

    def settings(self, row: str) -> dict[str, Any]:
        """Return all settings of a row, including its trainer's defaults: a changed default makes another run."""
        trainer, method = trainer_class(self.rows[row]["trainer"]), self.rows[row].get("method", {})
        recipe = {} if "terms" in method else trainer.recipe
        training = {**recipe, **self.schedule, **self.rows[row].get("training", {})}
        terms = build_terms(trainer.terms, method, training["num_epochs"])
        said = [f"{term}{term.options.removeprefix(term.name)}" for term in terms]
        settings = {"trainer": trainer.__name__, "training": training, "terms": said}
        if self.precision is not None and any(term.needs_teacher for term in terms):
            settings["precision"] = self.precision
        return settings

    def description(self, row: str) -> str:
        """Return trainer, terms, and what differs from the schedule as text."""
        settings = self.settings(row)
        different = {key: value for key, value in settings["training"].items() if self.schedule.get(key) != value}
        words = [f"{key} {value}" for key, value in different.items()]
        return "; ".join([settings["trainer"], *settings["terms"], *words])


SHORT = {"num_val_iterations_per_epoch": 5, "save_every": 5}
BRATS = {"num_epochs": 40, "num_iterations_per_epoch": 60, **SHORT}
HIPPOCAMPUS = {"num_epochs": 40, "num_iterations_per_epoch": 50, **SHORT}
DATA = {
    "brats": Data(
        "Dataset021_BraTSPatches",
        334,
        "32 x 32 x 32",
        {0: {**BRATS, "num_epochs": 60}, 1: BRATS},
        BRATS,
        "_lesion",
        ", less than these voxels of 1.2 by 1.9 by 1.9 mm are wide: the share of surface voxels that coincide",
    ),
    "hippocampus": Data("Dataset004_Hippocampus", 200, "40 x 56 x 40", {0: HIPPOCAMPUS}, HIPPOCAMPUS),
}
IFVD_TENTH = [
    {"name": "ifvd", "weight": 20.0},
    {"name": "logits", "weight": 1.0, "temperature": 1.0, "scales": "full", "convex": False},
]
HALF = {"num_epochs": 20}  # half the schedule
FITTED = {"initial_weights": "reconstructed"}
PRUNED = {"initial_weights": "pruned"}
TUNING = {
    BASELINE: METHODS[BASELINE],
    "NoKD, twice as long": {"trainer": "NoKD", "training": {"num_epochs": 40}},
    "NoKD, four times as long": {"trainer": "NoKD", "training": {"num_epochs": 80}},
    "every 4th channel": {"trainer": "NoKD", "training": {"initial_weights": "teacher"}},
    "reconstructed": {"trainer": "NoKD", "training": FITTED},
    "reconstructed, twice as long": {"trainer": "NoKD", "training": {**FITTED, "num_epochs": 40}},
    "reconstructed, EMA 0.99, twice as long": {
        "trainer": "NoKD",
        "training": {**FITTED, "ema_decay": 0.99, "num_epochs": 40},
    },
    "reconstructed + logits, twice as long": {
        "trainer": "KD",
        "method": {"terms": [LOGITS]},
        "training": {**FITTED, "num_epochs": 40},
    },
    "reconstructed, lr 0.003": {"trainer": "NoKD", "training": {**FITTED, "initial_lr": 0.003}},
    "reconstructed, EMA 0.99": {"trainer": "NoKD", "training": {**FITTED, "ema_decay": 0.99}},
    "EMA 0.99": {"trainer": "NoKD", "training": {"ema_decay": 0.99}},
    "DCD": METHODS["DCD"],
    "DCD 0.3": {"trainer": "DCD", "method": {"weight": 0.3}},
    "logits": {"trainer": "KD", "method": {"terms": [LOGITS]}},
    "reconstructed + logits": {"trainer": "KD", "method": {"terms": [LOGITS]}, "training": FITTED},
    "reconstructed + logits 0.9": {
        "trainer": "KD",
        "method": {"terms": [{**LOGITS, "weight": 0.9}]},
        "training": FITTED,
    },
    "reconstructed + DCD 0.3": {"trainer": "DCD", "method": {"weight": 0.3}, "training": FITTED},
    "reconstructed + FitNets": {"trainer": "FitNets", "training": FITTED},
    "reconstructed + CWD": {"trainer": "CWD", "method": {"weight": 3.0}, "training": FITTED},
    # The authors' weights, which are meant for 2-D natural images, and lower ones.
    **{
        f"{name} {weight:g}": {"trainer": name, "method": {"weight": weight}}
        for name, weights in (
            ("CWD", (3.0, 0.3, 0.03)),
            ("FitNets", (1.0, 0.1)),
            ("FreeKD", (1.0, 0.1)),
            ("LogitsKD", (0.3, 0.03)),
            ("DualSelfKD", (1.0, 0.1, 0.01)),
            ("DCD", (1.0, 3.0)),
        )
        for weight in weights
    },
    **{f"DCD {weight:g}, no ramp": {"trainer": "DCD", "method": at_once(weight)} for weight in (1.0, 3.0, 10.0)},
    "reconstructed + DCD 1, no ramp": {"trainer": "DCD", "method": at_once(1.0), "training": FITTED},
    "DCD 1, no ramp, twice as long": {"trainer": "DCD", "method": at_once(1.0), "training": {"num_epochs": 40}},
    "IFVD 200": {"trainer": "IFVD"},
    "IFVD 20": {"trainer": "KD", "method": {"terms": IFVD_TENTH}},
    "reconstructed + FreeKD": {"trainer": "FreeKD", "training": FITTED},
    "reconstructed + IFVD": {"trainer": "IFVD", "training": FITTED},
    "reconstructed + IFVD, EMA 0.99, twice as long": {
        "trainer": "IFVD",
        "training": {**FITTED, "ema_decay": 0.99, "num_epochs": 40},
    },
    "pruned": {"trainer": "NoKD", "training": PRUNED},
    "pruned, EMA 0.99, twice as long": {
        "trainer": "NoKD",
        "training": {**PRUNED, "ema_decay": 0.99, "num_epochs": 40},
    },
    "pruned + IFVD": {"trainer": "IFVD", "training": PRUNED},
    "pruned + DCD 1, no ramp": {"trainer": "DCD", "method": at_once(1.0), "training": PRUNED},
}
SPREAD = {name: TUNING[name] for name in (BASELINE, "reconstructed", "pruned")}
ABLATION = {  # at a weight of DCD that has an effect
    **{name: METHODS[name] for name in (STRONG, BASELINE)},
    **{
        f"{STRONG}, {name}": {"trainer": "DCD", "method": {**at_once(1.0), **keywords}}
        for name, keywords in ABLATIONS["dcd"].rows.items()
    },
}
LIKE_AUTHORS = 0.01 / 11.2  # the authors' code computes a loss 11.2 times lower than equation 7, on hippocampus
AUTHORS = {  # which part of the authors' code explains the paper's gain
    BASELINE: METHODS[BASELINE],
    "DCD, exact, learned": {"trainer": "DCD", "method": {"weight": LIKE_AUTHORS}},
    "DCD, exact, frozen": {"trainer": "DCD", "method": {"weight": LIKE_AUTHORS, "projection": "frozen"}},
    "DCD, published, frozen": {
        "trainer": "DCD",
        "method": {"weight": 0.01, "projection": "frozen", "transform": "published"},
    },
}
LONG = {name: METHODS[name] for name in (BASELINE, STRONG, "KD")}
_OF_BRATS, _OF_HIPPOCAMPUS = "BraTS patches, {} of the width", "Hippocampus, {} of the width"
_QUARTER, _EIGHTH = "a quarter", "an eighth"
PARTS = {
    "brats_r4": Part(_OF_BRATS.format(_QUARTER), "BraTS, r = 4", "brats", 4, METHODS),
    "brats_r8": Part(_OF_BRATS.format(_EIGHTH), "BraTS, r = 8", "brats", 8, METHODS, precision="bfloat16"),
    "hippocampus_r4": Part(
        _OF_HIPPOCAMPUS.format(_QUARTER),
        "Hippocampus, r = 4",
        "hippocampus",
        4,
        METHODS,
        precision="bfloat16",
    ),
    "hippocampus_r8": Part(
        _OF_HIPPOCAMPUS.format(_EIGHTH),
        "Hippocampus, r = 8",
        "hippocampus",
        8,
        METHODS,
        precision="bfloat16",
    ),
    "ablation": Part("DCD's ablation, BraTS patches, r = 4", "", "brats", 4, ABLATION),
    "brats_long": Part(
        f"{_OF_BRATS.format(_QUARTER)}, twice as long", "", "brats", 4, LONG, training={"num_epochs": 80}
    ),
    "authors_brats_r4": Part("DCD's weight and projection, BraTS patches, r = 4", "", "brats", 4, AUTHORS),
    "authors_hippocampus_r8": Part("DCD's weight and projection, hippocampus, r = 8", "", "hippocampus", 8, AUTHORS),
    "tuning": Part("Tuning: fold 1 of the BraTS patches, r = 4", "", "brats", 4, TUNING, 1, (0,), HALF),
    "spread": Part("Tuning: spread over seeds, fold 1, r = 4", "", "brats", 4, SPREAD, 1, SEEDS, HALF),
}
