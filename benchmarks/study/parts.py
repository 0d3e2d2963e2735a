"""What the study runs: data sets, schedules, rows; the sweep from which the defaults were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_kd.distillation.methods import build_terms
from nnunet_kd.nnunet.experiment import find_trainer
from nnunet_kd.study.runs import ABLATIONS

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
        cases: How many it has.
        patch: What a network is trained on, in voxels.
        teachers: Schedule of the teacher of every fold that is used.
        student: Schedule of every student.
        patient_ends: What follows a patient's name in those of his or her cases; empty: a case is a patient.
        about_distances: What a reader has to know of them.
    """

    folder: str
    cases: int
    patch: str
    teachers: Mapping[int, Mapping[str, Any]]
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
    def baseline(self) -> str:
        """The row with which the others are compared."""
        return next(iter(self.rows))

    @property
    def schedule(self) -> dict[str, Any]:
        """Of every student, where its row says nothing else."""
        return {**DATA[self.data].student, **self.training}

    def settings(self, row: str) -> dict[str, Any]:
        """What its runs depend on, the defaults of its trainer included: a changed one makes it another run."""
        trainer, method = find_trainer(f"nnUNetTrainer{self.rows[row]['trainer']}"), self.rows[row].get("method", {})
        recipe = {} if "terms" in method else trainer.recipe
        training = {**recipe, **self.schedule, **self.rows[row].get("training", {})}
        terms = build_terms(trainer.terms, method, training["num_epochs"])
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
student from random weights, 0.6 for a fitted one and 0.7 for a pruned one. Gains below are over NoKD with this seed,
51.4, the lowest of its three, whose mean is 53.3: the pruned start gains 12.1 here and 10.9 over three seeds.

- **What was seen before.** The values were chosen on these cases alone. But three of the sweeps were begun when some
  runs of fold 0 at r = 4, since replaced, had shown a need: dual self-distillation's (44.6 with its authors' weight),
  DCD's (59.9 beside NoKD's 59.8) and that of the pruned start (62.4 and 62.8 with the fitted one). The runs of r = 8
  and of the hippocampus came after all choices.
- **Schedule.** A student from random weights gains 9.1 points from twice the schedule and 9.9 from the fitted start.
  With four times the schedule, 80 epochs, it comes within 2.0 points of this teacher, which was trained for 40. The
  reported parts have 40 epochs: more than most rows here, and not enough for NoKD, which gains another 3.9 points from
  40 to 80, two thirds of what it lacks to the teacher. Two CPU cores do not allow much more.
- **Weights.** CWD's own leaves the student 10.7 points behind NoKD, a tenth 5.6, a hundredth none; dual
  self-distillation's leaves it 12.3 behind, a tenth 2.0 ahead, a hundredth 1.0. These two have the best of three as
  their default, since their authors' numbers do harm. The other methods' authors' numbers are above NoKD and stay; a
  tenth is better for FitNets alone, by 1.6. (IFVD's are on every stage here, with a divergence summed over the classes,
  where its authors have one feature map and the mean.) FreeKD's and IFVD's are 5.5 and 5.8 points above NoKD of the
  same seed; NoKD's own seeds differ by up to 4.9.
- **DCD.** Its own weight of 0.01, under its ramp, changes next to nothing in so short a training: 0.4. A weight of 1
  from the first epoch is 7.5 points above NoKD, and 3.0 with twice the schedule; three and ten times as much 5.6. Under
  the ramp the same weight is 3.1 above, and three times as much 4.9. It cannot be told from here whether 1 would do for
  the thousand epochs that 0.01 was published for, so the default stays, and the reported parts have both.
- **Recipe.** Of what comes from the teacher its weights give most. Copying every 4th channel loses 5.0 points; fitting
  these channels ('reconstructed') gains 9.9, fitting those that pruning leaves ('pruned') 12.1, and with averaged
  weights and twice the schedule, beside NoKD's of that schedule, 4.1 and 5.4. Terms beside the first change little or
  take from it, but for IFVD's, which gives 1.9 points in 20 epochs and takes 0.7 in 40; beside the second IFVD's and
  DCD's change -0.1 and +0.3. So the recipe is the pruned start and has no term. Averaged weights gave 0.3 to 1.1 points
  where no term was and cost nothing, so the recipe has them. It was chosen among some twenty starts and mixtures, DCD's
  weight of 1 among seven settings, the other methods' weights between two or three; the reported parts have NoKD with
  averaged weights too."""
LUCK = """\
NoKD's third seed, 55.1, is 4.7 and 4.3 points below its other two, so most of what a loss gains over NoKD is that seed:
in the other two DCD of weight 1 gains 0.3, FreeKD 0.1 and IFVD 0.3, and KD 3.8, 64 % of the gap."""
HALVED = """\
The schedule is as long as the teacher's. It was first half as long; NoKD's curve on fold 0, which is reported here, had
not levelled off then. Nothing else was decided on these cases."""
CONFUSED = """\


Rows that are far below NoKD confuse the two ends of the hippocampus, which training data, mirrored, show both ways
round: voxels of one label lie where the other is. NoKD's HD95 is 1.7 or 1.8 mm in every label and seed. That of
LogitsKD and of DCD + logits is 15.6 or 15.7 mm in the posterior label with seeds 0 and 2, with which they are 7.7 to
11.1 points of Dice below, and 1.7 and 1.8 with seed 1, with which they are 0.2 below. IFVD's is 15.4, 23.4 and 23.3 mm
in one of the labels, DualSelfKD's 23.4 with seed 2; without that it is 2.3 and 3.8 points below all the same. Whether
a longer schedule mends this was not tested."""
ENDS = """


At this width NoKD confuses the ends too, in every seed: NoKD's HD95 is 9.7, 20.7 and 15.1 mm in the anterior label.
Some losses keep them apart: HD95 of DCD with weight 1, of FreeKD and of KD, in either label and any seed, is never
above 2.8, 2.5 and 1.8 mm, CWD's once 15.0 mm, FitNets' once 17.0. DCD's as published is 9.1, 17.2 and 15.4 mm. The four
that are far below NoKD confuse them more: their mean HD95 is 13.1 to 17.4 mm, NoKD's 8.6."""
BANDS = """\
Here the row that the others are compared with is DCD itself, with the directional bands, the best choice in the paper's
Table 4 (68.5; NoKD 63.6). All details do as well (-0.1). What has the approximations in it harms: alone they cost 10.1
points (6.5 in the paper), with all other bands 4.1. Two of the paper's rows are not found again. The band that is
high-pass along every axis alone (62.3 in the paper, below NoKD) is 1.3 points below the directional ones, and not below
NoKD. And nothing is lost without the inverse transform (62.9 in the paper; +0.1 here): ours is orthonormal, so both are
the same sum of squares and differ in what it is divided by, as if the weight were a third larger; the authors' does not
invert itself. One mean of all levels, as the equation has it, is 1.2 points below the mean a level, as the code has it,
and below it in every seed."""
LEVEL = """\
What is left of the gap when students train twice as long, longer than their teacher did: 0.0, 1.3 and 6.3 points in the
seeds, so far apart that the interval of their mean, 2.6, holds 0. KD is as good as the teacher, by 0.4, -0.1 and 0.0
points, and 0.5, 1.3 and 6.3 above NoKD. Its seeds differ by 0.5 points at most, DCD's of weight 1 by 0.9, NoKD's by
6.3: with a teacher none fell as far as NoKD's third. DCD is 3.3 and 1.4 below NoKD in the first two and 2.8 above in
the last."""
SPREAD = {name: TUNING[name] for name in (BASELINE, "reconstructed", "pruned")}
ABLATION = {  # of a DCD that has an effect
    **{name: METHODS[name] for name in (STRONG, BASELINE)},
    **{
        f"{STRONG}, {name}": {"trainer": "DCD", "method": {**at_once(1.0), **keywords}}
        for name, keywords in ABLATIONS["dcd"][1].items()
    },
}
LONG = {name: METHODS[name] for name in (BASELINE, STRONG, "KD")}
_OF_BRATS, _OF_HIPPOCAMPUS = "BraTS patches, {} of the width", "Hippocampus, {} of the width"
_QUARTER, _EIGHTH = "a quarter", "an eighth"
PARTS = {
    "brats_r4": Part(_OF_BRATS.format(_QUARTER), "BraTS, r = 4", "brats", 4, METHODS, note=LUCK),
    "brats_r8": Part(_OF_BRATS.format(_EIGHTH), "BraTS, r = 8", "brats", 8, METHODS, precision="bfloat16"),
    "hippocampus_r4": Part(
        _OF_HIPPOCAMPUS.format(_QUARTER),
        "Hippocampus, r = 4",
        "hippocampus",
        4,
        METHODS,
        note=HALVED + CONFUSED,
        precision="bfloat16",
    ),
    "hippocampus_r8": Part(
        _OF_HIPPOCAMPUS.format(_EIGHTH),
        "Hippocampus, r = 8",
        "hippocampus",
        8,
        METHODS,
        note=HALVED + ENDS,
        precision="bfloat16",
    ),
    "ablation": Part("DCD's ablation, BraTS patches, r = 4", "", "brats", 4, ABLATION, note=BANDS),
    "brats_long": Part(
        f"{_OF_BRATS.format(_QUARTER)}, twice as long", "", "brats", 4, LONG, training={"num_epochs": 80}, note=LEVEL
    ),
    "tuning": Part("Tuning: fold 1 of the BraTS patches, r = 4", "", "brats", 4, TUNING, 1, (0,), HALF, DECIDED),
    "spread": Part("Tuning: spread over seeds, fold 1, r = 4", "", "brats", 4, SPREAD, 1, SEEDS, HALF),
}
