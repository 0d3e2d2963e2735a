"""The end of ``nnunet_kd demo``: its table, what it says, and a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.datasets.synthetic import CHANNELS, LABELS
from nnunet_kd.evaluation import page
from nnunet_kd.evaluation.pictures import Case, draw_cases
from nnunet_kd.evaluation.table import Table
from nnunet_kd.storage.writing import write_whole

FOUND = 0.1  # the Dice above which a structure counts as found
PICTURED = 3  # cases
NOTE = (
    "Dice is the mean over the validation cases of fold 0, by nnU-Net's evaluation. Seconds are those of the whole "
    "command, divided by the number of cases: nnUNetv2_predict, and nnunet_kd predict for the exported student; so few "
    "small cases take little longer than the start of the command."
)
SHORT = (
    "One training of a minute or two per model shows that this installation works. It says nothing about the methods: "
    "another seed can change their order."
)


@dataclass(frozen=True)
class Result:
    """What the demo found of a model.

    Attributes:
        dice: The mean Dice of every structure over the held-out cases.
        parameters: The number of parameters.
        seconds: The seconds per case of the command that segmented them, if there was one.
    """

    dice: Mapping[str, float]
    parameters: int
    seconds: float | None

    @property
    def mean(self) -> float:
        """The mean Dice of all structures."""
        return sum(self.dice.values()) / len(self.dice)


def result_table(results: Mapping[str, Result]) -> Table:
    """Return the table of all results; those of ``nnunet_kd predict`` have names that end in "exported"."""
    structures = list(next(iter(results.values())).dice)
    header = ["", *(f"{name} Dice" for name in structures), "parameters", "s per case, stock", "s per case, ours"]
    rows = []
    for name, result in results.items():
        seconds = "-" if result.seconds is None else f"{result.seconds:.2f}"
        times = ["-", seconds] if name.endswith("exported") else [seconds, "-"]
        dice = (f"{value:.3f}" for value in result.dice.values())
        rows.append([name, *dice, f"{result.parameters:,}", *times])
    return Table(header, rows)


def in_words(results: Mapping[str, Result]) -> list[str]:
    """Return what came out, in sentences: how near the best student is to its teacher, and what was not found."""
    teacher = results["teacher"]
    students = {name: one for name, one in results.items() if name != "teacher" and not name.endswith("exported")}
    best = max(students, key=lambda name: students[name].mean)
    ratio = teacher.parameters / students[best].parameters
    said = [
        f"{best} is the best student here: its mean Dice is {students[best].mean:.3f}, the teacher's is "
        f"{teacher.mean:.3f}, and it has 1/{ratio:.3g} of the teacher's parameters."
    ]
    if students[best].mean > teacher.mean:
        said.append("It is above its teacher because the teacher's training was so brief: do not expect that of yours.")
    exported = results.get(f"{best}, exported")
    if exported is not None:
        said.append(f"Exported and run without PyTorch and nnU-Net, its mean Dice is {exported.mean:.3f}.")
    for name, result in {"teacher": teacher, **students}.items():
        lost = [structure for structure, dice in result.dice.items() if not dice > FOUND]
        if lost:
            said.append(
                f"{name} finds next to nothing of {' and '.join(lost)}: {_why(name, lost, teacher)}, which a longer "
                "training mends."
            )
    return [*said, SHORT]


def _why(name: str, lost: Sequence[str], teacher: Result) -> str:
    taught = name not in ("teacher", "NoKD") and any(not teacher.dice[structure] > FOUND for structure in lost)
    return "its teacher does not find it either" if taught else "so few iterations are not enough for it"


def write_page(
    path: Path, said: Sequence[str], table: Table, folders: Mapping[str, Path], raw: Path, cases: Sequence[str]
) -> None:
    """Write the page of the demo.

    Args:
        path: The file.
        said: The sentences that a reader sees first.
        table: The table of all results.
        folders: The segmentations of the held-out cases by model.
        raw: The raw data set.
        cases: The held-out cases, of which the first are drawn.
    """
    structures = {name: (value,) for name, value in LABELS.items() if value}
    shown = {}
    for case in cases[:PICTURED]:
        reference = raw / "labelsTr" / f"{case}.nii.gz"
        labels, spacing = _read(reference)
        image, _ = _read(raw / "imagesTr" / f"{case}_{CHANNELS.index('FLAIR'):04d}.nii.gz")
        found = {model: _read(folder / reference.name)[0] for model, folder in folders.items()}
        shown[case] = Case(image, labels, found, spacing, {})
    title = "A teacher and its students on synthetic heads"
    parts = [f"<h1>{title}</h1>", page.verdicts(said), page.section("Results", NOTE, [table], unfolded=True)]
    parts.append(page.gallery(draw_cases("Held-out cases", "", shown, structures, "reference")))
    write_whole(path, page.whole_page(title, parts))


def _read(path: Path) -> tuple[Any, list[float]]:
    """Return the voxels ``(z, y, x)`` of an image and their size in mm."""
    import SimpleITK

    image = SimpleITK.ReadImage(str(path))
    return SimpleITK.GetArrayFromImage(image), list(reversed(image.GetSpacing()))
