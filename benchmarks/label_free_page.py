"""The page ``label_free.md``, which is written from the record of ``label_free.py`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_kd.evaluation.statistics import Interval, Values, mean_difference, mean_of_runs
from nnunet_kd.evaluation.table import Table

Entry = Mapping[str, Any]
Scored = Mapping[str, Values]
_WIDTHS = {"r4": "a quarter of the width", "r8": "an eighth of the width"}
_DATA = {"hippocampus": "Hippocampus", "brats": "BraTS patches"}
SECTIONS = {
    **{f"{data}/{r}": f"{title}, {width}" for data, title in _DATA.items() for r, width in _WIDTHS.items()},
    **{
        f"{data}/unseen/{r}": f"{title}, {width}, an older teacher"
        for data, title in _DATA.items()
        for r, width in _WIDTHS.items()
    },
    "hippocampus/spacing": "Hippocampus, a student at 1.5 mm",
    "hippocampus/folds": "Hippocampus, five folds to one student",
    "hippocampus/tuning": "Hippocampus, weight and temperature of the soft labels, on tuning cases",
    "brats/modality": "BraTS patches, a student that sees T1CE and FLAIR alone",
}
ARMS = {
    "teacher": "teacher",
    "older": "teacher",
    "nokd": "NoKD: labels, no teacher",
    "kd": "nnUNetTrainerKD: labels",
    "pool": "distill: images without labels",
    "both": "distill: labels, and images without labels",
    "distilled": "distill: labels",
    "1.0": "distill: images without labels, 1.0 mm",
    "1.5": "distill: images without labels, 1.5 mm",
    "all": "five teachers together",
    "best": "the teacher that is best in its own validation",
    "student": "distill: labels, five teachers",
}
OLDER = (
    "The teacher has trained on fold 0's whole training part, both halves with their labels, and with a longer "
    "schedule than the students; its plans and weights were given."
)
HALVES = (
    "Fold 0's training part is split into two halves by patient, with a seed. The teacher, nnU-Net at full width, and "
    "students with labels learn from the first half; of the second, students get the images, and nobody the labels."
)
ABOUT = {
    **{f"{data}/{r}": HALVES for data in _DATA for r in _WIDTHS},
    "brats/modality": f"{OLDER} It sees T1, T1CE, T2 and FLAIR; both students have the same cases and labels.",
    "hippocampus/tuning": "A quarter of the pool is kept from these students, and they are scored on it.",
    **{
        f"{data}/unseen/{r}": f"{OLDER} The validation part, which it has not seen, is split into two halves by "
        "patient: the images without labels are those of one, and all models are scored on the other. Students with "
        "labels have those of the whole training part."
        for data in _DATA
        for r in _WIDTHS
    },
}
ALLOWED = {"r4": 0.3, "r8": 1.0}  # what a student without labels may lose to its teacher, in points
REFERENCE = {
    "hippocampus/folds": "hippocampus/folds/all",
    "brats/modality": "brats/modality/teacher",
    **{f"{data}/unseen/{r}": f"{data}/older" for data in _DATA for r in _WIDTHS},
}


def page(record: Mapping[str, Any], wanted: Mapping[str, Sequence[int]]) -> str:
    """Return the page: what was asked, and a table and a paragraph for every section that has runs.

    Args:
        record: The content of ``label_free.json``.
        wanted: The seeds of all runs of the study by name.
    """
    runs: list[Entry] = record["runs"]
    lines = [
        "# Distillation with and without labels",
        "",
        "`benchmarks/label_free.py` writes this page from `label_free.json`. It asks how much a student loses to its "
        "teacher if it learns from images alone, and what labels add. Models are scored on cases of fold 0's "
        "validation part, on which nothing was chosen. Dice is the mean over structures, then over cases, in points; "
        "behind it is the difference to the teacher with its bootstrap interval (95 %) over cases and seeds. Distilled "
        "students have soft labels without mirroring (`--disable_tta`), and one image in twenty is kept back for the "
        "report of `nnunet_kd distill`. CPU seconds are those of all commands of a run, and unknown if it was stopped. "
        "The schedules are short, so that absolute values are lower than nnU-Net's usual ones.",
    ]
    for section, title in SECTIONS.items():
        mine = [one for one in runs if one["run"].rpartition("/")[0] == section]
        if mine:
            about = [ABOUT[section], ""] if section in ABOUT else []
            lines += ["", f"## {title}", "", *about, *_section(section, mine, runs)]
    done = {(one["run"], one["seed"]) for one in runs}
    every = {(name, seed) for name, seeds in wanted.items() for seed in seeds}
    lines += ["", f"{len(every & done)} of the study's {len(every)} runs have been made; `--list` names all of them."]
    return "\n".join(lines) + "\n"


def _section(section: str, mine: Sequence[Entry], runs: Sequence[Entry]) -> list[str]:
    data, _, _ = section.partition("/")
    name = REFERENCE.get(section, f"{data}/teacher")
    group = mine[0]["scored_on"]
    teacher = [one for one in runs if one["run"] == name and one["scored_on"] == group]
    shown: dict[str, list[Entry]] = {}
    for one in [*teacher, *mine]:
        if one not in shown.setdefault(one["run"], []):
            shown[one["run"]].append(one)
    scores = {name: _values(entries) for name, entries in shown.items()}
    structures = list(mine[0]["structures"])
    extra = any("predicted_in" in one for one in mine)
    header = ["model", "seeds", "epochs x steps", "Dice", "to the teacher", *structures, "parameters", "CPU seconds"]
    table = Table(
        [*header, *(["voxels", "prediction"] if extra else [])],
        [_cells(entries, scores, name if teacher else None, structures, extra) for entries in shown.values()],
    )
    return [table.markdown(), "", _reading(section, shown, scores, name)]


def _cells(
    entries: Sequence[Entry], scores: Scored, teacher: str | None, structures: Sequence[str], extra: bool
) -> list[str]:
    one = entries[0]
    arm = one["run"].rpartition("/")[2]
    difference = "" if teacher in (None, one["run"]) else _shown(_to(scores, one["run"], str(teacher)))
    cells = [
        ARMS.get(arm, arm),
        " ".join(str(entry["seed"]) for entry in entries),
        f"{one['schedule']['epochs']}" + (f" x {steps}" if (steps := one["schedule"]["iterations"]) else ""),
        f"{100 * np.mean([entry['dice'] for entry in entries]):.2f}",
        difference,
        *(f"{100 * np.mean([entry['structures'][name] for entry in entries]):.2f}" for name in structures),
        f"{one['parameters'] / 1e6:.3f} M",
        "" if None in (used := [entry.get("cpu_seconds") for entry in entries]) else f"{np.mean(used):.0f}",
    ]
    if extra:
        predicted = one.get("predicted_in", {})
        cells += [str(one.get("voxels", "")), "; ".join(f"{name} {value:g} s" for name, value in predicted.items())]
    return cells


def _reading(section: str, shown: Mapping[str, Sequence[Entry]], scores: Scored, teacher: str) -> str:
    """Return the sentences that the runs of a section allow."""
    said = []
    pool, both, kd, nokd = (f"{section}/{arm}" for arm in ("pool", "both", "kd", "nokd"))
    width = section.rpartition("/")[2]
    if pool in shown and teacher in shown and width in ALLOWED:
        lost, allowed = _to(scores, pool, teacher), ALLOWED[width]
        met = "meets" if -100 * lost.value <= allowed else "misses"
        said.append(
            f"Without labels, the student's Dice differs from its teacher's by {_shown(lost)} points, which {met} the "
            f"goal of losing at most {allowed:g}."
        )
    if both in shown:
        for other, who in ((kd, "nnUNetTrainerKD"), (teacher, "the teacher")):
            if other in shown:
                said.append(f"With both, it differs from {who} by {_shown(_to(scores, both, other))}.")
    if pool in shown and nokd in shown:
        said.append(
            f"The student of images alone differs from NoKD, which has labels, by {_shown(_to(scores, pool, nokd))}."
        )
    if section == "hippocampus/spacing" and len([name for name in shown if name.startswith(section)]) == 2:
        fine, coarse = (shown[f"{section}/{width}"][0] for width in ("1.0", "1.5"))
        ratios = [
            f"{name} takes {coarse['predicted_in'][name] / fine['predicted_in'][name]:.2f} of the time"
            for name in fine["predicted_in"]
        ]
        said.append(
            f"At 1.5 mm the Dice differs by {_shown(_to(scores, coarse['run'], fine['run']))} from that at 1.0 mm, "
            f"with {coarse['voxels'] / fine['voxels']:.2f} of the voxels; {' and '.join(ratios)} (whole commands, with "
            "their start)."
        )
    distilled, plain = "brats/modality/distilled", "brats/modality/nokd"
    if distilled in shown and plain in shown:
        said.append(f"Distillation differs from NoKD by {_shown(_to(scores, distilled, plain))} points.")
    seeds = {entry["seed"] for name, entries in shown.items() if name != teacher for entry in entries}
    if len(seeds) == 1:
        said.append("All of this is one seed, so the intervals leave out what another seed would change.")
    return " ".join(said)


def _values(entries: Sequence[Entry]) -> Values:
    """Return the Dice ``(runs, cases)``, the mean over the structures of each case."""
    each = [np.array(list(entry["per_case"].values()), dtype=np.float64) for entry in entries]
    return np.stack([mean_of_runs(structures) for structures in each])


def _to(scores: Scored, run: str, other: str) -> Interval:
    return mean_difference(scores[run], scores[other])


def _shown(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.value:+.2f} [{low:+.2f}, {high:+.2f}]"
