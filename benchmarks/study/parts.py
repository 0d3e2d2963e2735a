"""What the study runs: data sets, schedules, rows; the sweep from which the defaults were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_kd.evaluation.runs import ABLATIONS
from nnunet_kd.teachers.nnunet import find_trainer
from nnunet_kd.training.methods import active_terms

SEEDS = (0, 1, 2)
BASELINE = "NoKD"
STRONG = "DCD, weight 1"


def at_once(weight: float) -> dict[str, Any]:
    """A method's settings, with this weight from the first epoch."""
    return {"weight": weight, "ramp": None}


METHODS: dict[str, Any] = {
    BASELINE: {"trainer": BASELINE},
    "NoKD, averaged": {"trainer": BASELINE, "training": {"ema_decay": 0.99}},  # as KD's weights are
    **{name: {"trainer": name} for name in ("LogitsKD", "FitNets", "CWD", "IFVD", "FreeKD", "DCD")},
    STRONG: {"trainer": "DCD", "method": at_once(1.0)},
    "DualSelfKD": {"trainer": "DualSelfKD"},
    "DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
    "KD": {"trainer": "KD"},
}
LOGITS = {"name": "logits", "temperature": 1.0, "weight": 0.5}


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        folder: Its name.
        teacher: Schedule of its teachers.
        student: Schedule of every student.
        patient_ends: What follows a patient's name in those of his or her cases; empty: a case is a patient.
        about_distances: What a reader has to know of them.
    """

    folder: str
    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    patient_ends: str = ""
    about_distances: str = ""

    def patients(self, cases: Sequence[str]) -> int:
        """How many these cases are of."""
        return len({case.partition(self.patient_ends)[0] if self.patient_ends else case for case in cases})


@dataclass(frozen=True)
class Part:
    """A data set, a reduction, and rows.

    Attributes:
        title: In study.md.
        short: In its first table; empty: not there.
        data: Key of :data:`DATA`.
        reduction: Of the student's widths.
        rows: As in a file for ``--rows``; the first is the baseline.
        fold: Of the cases that are evaluated.
        seeds: Of the page.
        training: Schedule where it differs from that of the data set's students.
        note: What was learned, above its tables.
        precision: Of the teacher, while a student trains; ``None``: as the student's.
    """

    title: str
    short: str
    data: str
    reduction: int
    rows: Mapping[str, Any]
    fold: int = 0
    seeds: Sequence[int] = SEEDS
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    precision: str | None = None

    @property
    def schedule(self) -> dict[str, Any]:
        """Of every student, where its row says nothing else."""
        return {**DATA[self.data].student, **self.training}

    def settings(self, row: str) -> dict[str, Any]:
        """What its runs depend on, the defaults of its trainer included: a changed one makes it another run."""
        trainer, method = find_trainer(f"nnUNetTrainer{self.rows[row]['trainer']}"), self.rows[row].get("method", {})
        recipe = {} if "terms" in method else trainer.recipe
        training = {**recipe, **self.schedule, **self.rows[row].get("training", {})}
        terms = active_terms(trainer.terms, method, training["num_epochs"])
        said = [f"{term}{term.options.removeprefix(term.name)}" for term in terms]
        settings = {"trainer": trainer.__name__, "training": training, "terms": said}
        if self.precision is not None and any(term.needs_teacher for term in terms):
            settings["precision"] = self.precision
        return settings

    def description(self, row: str) -> str:
        """Trainer, terms, and what differs from the schedule."""
        settings = self.settings(row)
        different = {key: value for key, value in settings["training"].items() if self.schedule.get(key) != value}
        words = [f"{key} {value}" for key, value in different.items()]
        return "; ".join([settings["trainer"], *settings["terms"], *words])


SHORT = {"num_val_iterations_per_epoch": 5, "save_every": 5}
DATA = {
    "brats": Data(
        "Dataset021_BraTSPatches",
        {"num_epochs": 40, "num_iterations_per_epoch": 60, **SHORT},
        {"num_epochs": 40, "num_iterations_per_epoch": 60, **SHORT},
        "_lesion",
        ", less than these voxels of 1.2 by 1.9 by 1.9 mm are wide: the share of surface voxels that coincide",
    ),
    "hippocampus": Data(
        "Dataset004_Hippocampus",
        {"num_epochs": 40, "num_iterations_per_epoch": 50, **SHORT},
        {"num_epochs": 40, "num_iterations_per_epoch": 50, **SHORT},
    ),
}
IFVD_TENTH = [
    {"name": "ifvd", "weight": 20.0},
    {"name": "logits", "weight": 1.0, "temperature": 1.0, "scales": "full", "convex": False},
]
HALF = {"num_epochs": 20}  # schedule
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
    # The authors' weights, which are for 2-D natural images, and lower ones.
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
DECIDED = """\
Decided here, on one seed, with the next part in mind: the standard deviation between seeds is 2.6 points of Dice for a
student from random weights, 0.6 for a fitted one and 0.7 for a pruned one.

- **Schedule.** A student from random weights gains as much from twice the schedule as from the fitted start, and with
  four times the schedule comes near this teacher, which was trained half as long; so the reported parts train twice as
  long as most rows here.
- **Weights.** CWD's own leaves the student eleven points behind NoKD, a tenth six, a hundredth none; dual
  self-distillation's leaves it twelve behind, a tenth two ahead, a hundredth one; the best of each is the default. Of
  the others a tenth is better for FitNets alone, by less than NoKD's standard deviation between seeds, so these keep
  their authors' numbers. (IFVD's are on every stage here, with a divergence summed over the classes, where its authors
  have one feature map and the mean.) FreeKD's and IFVD's are 5.5 and 5.8 points above NoKD of the same seed; NoKD's own
  seeds differ by up to 4.9.
- **DCD.** Its own weight of 0.01, under its ramp, changes next to nothing in so short a training. A weight of 1 from
  the first epoch is 7.5 points above NoKD, and 3.0 with twice the schedule; three and ten times as much 5.6. Under the
  ramp the same weight is 3.1 above, and three times as much 4.9. It cannot be told from here whether 1 would do for the
  thousand epochs that 0.01 was published for, so the default stays, and the reported parts have both.
- **Recipe.** Of what comes from the teacher the fitted start gives most: with every 4th channel 9.9 points, with the
  channels pruning leaves 12.1; with averaged weights on the longer schedule 4.1 and 5.4. Terms beside the first change
  nothing or take from it, but for IFVD's, which gives two points in 20 epochs and takes 0.7 in 40; beside the second
  DCD's and IFVD's change less than a seed does. So the recipe is the pruned start and has no term. Averaged weights
  gave 0.3 to 1.1 points where no term was and cost nothing, so the recipe has them. It was chosen among some twenty
  starts and mixtures, DCD's weight of 1 among seven settings, the other methods' weights among one to three; the
  reported parts have NoKD with averaged weights too."""
HIPPOCAMPUS = """\
The schedule is as long as the teacher's. It was first half as long; NoKD's curve on fold 0, which is reported here, had
not levelled off then. Nothing else was decided on these cases."""
LATE = """\


What decides here is when a student tells the two labels apart: mirrored, as training data are, the anterior hippocampus
lies where the posterior was. Students from random weights draw nothing at first, then the anterior label, then both. In
nnU-Net's own validation while training with seed 0, the posterior label's Dice first exceeds 0.5 in epoch 11 of 40 with
NoKD, 23 with IFVD, 26 with DualSelfKD and 29 with LogitsKD; KD, which starts from the teacher's channels, is there in
epoch 3. LogitsKD's was still rising at the end: 0.67 over the last five epochs after 0.59 over the five before, where
NoKD's went from 0.83 to 0.84. With seed 1 LogitsKD is there in epoch 12, and ends level with NoKD. With that seed IFVD
draws both from epoch 3 on, but ends with 428 voxels of a case called anterior that are nearer to the posterior label's
centre; NoKD has 4 of them. With seed 2 both labels first exceed 0.5 in epoch 15 with NoKD, 26 with DualSelfKD and 27
with LogitsKD and DCD + logits, whose posterior label was still rising too: 0.63 after 0.58. So the rows far below NoKD
came off this plateau too late for the schedule, or not wholly."""
BANDS = """\
The directional bands, the best choice in the paper's Table 4, and all details are level here; what has the
approximations in it harms: alone they cost 8.5 points, with all other bands 2.5. Two of its rows are not found again.
The band that is high-pass along every axis is not below NoKD here. And nothing is lost without the inverse transform:
ours is orthonormal, so both are the same sum of squares and differ in what it is divided by, as if the weight were a
third larger; the authors' does not invert itself. One mean of all levels, as the equation has it, is 1.2 points below
the mean a level, as the code has it. NoKD's third seed is four points below its others, so differences to it are mostly
of that seed."""
SPREAD = {name: TUNING[name] for name in (BASELINE, "reconstructed", "pruned")}
ABLATION = {  # of a DCD that has an effect
    **{name: METHODS[name] for name in (BASELINE, STRONG)},
    **{
        f"{STRONG}, {name}": {"trainer": "DCD", "method": {**at_once(1.0), **keywords}}
        for name, keywords in ABLATIONS["dcd"][1].items()
    },
}
PARTS = {
    "tuning": Part("Tuning: fold 1 of the BraTS patches, r = 4", "", "brats", 4, TUNING, 1, (0,), HALF, DECIDED),
    "spread": Part("Tuning: spread over seeds, fold 1, r = 4", "", "brats", 4, SPREAD, 1, SEEDS, HALF),
    "brats_r4": Part("BraTS patches, a quarter of the width", "BraTS, r = 4", "brats", 4, METHODS),
    "brats_r8": Part(
        "BraTS patches, an eighth of the width", "BraTS, r = 8", "brats", 8, METHODS, precision="bfloat16"
    ),
    "hippocampus_r4": Part(
        "Hippocampus, a quarter of the width",
        "Hippocampus, r = 4",
        "hippocampus",
        4,
        METHODS,
        note=HIPPOCAMPUS + LATE,
        precision="bfloat16",
    ),
    "hippocampus_r8": Part(
        "Hippocampus, an eighth of the width",
        "Hippocampus, r = 8",
        "hippocampus",
        8,
        METHODS,
        note=HIPPOCAMPUS,
        precision="bfloat16",
    ),
    "ablation": Part("DCD's ablation, BraTS patches, r = 4", "", "brats", 4, ABLATION, note=BANDS),
}
