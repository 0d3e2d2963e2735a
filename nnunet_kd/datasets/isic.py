"""The layout the ISIC challenges share: a folder of pictures and one of masks for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nnunet_kd.datasets.conversion import Case, Description, Options, Target, entries
from nnunet_kd.datasets.kvasir_seg import write_coloured

PARTS = ("training", "validation", "test")


def finder(begins: str) -> Callable[[Path, Options], tuple[list[Case], list[str]]]:
    """What finds the cases of the challenge whose folders' names begin so, in capitals or not."""

    def find(source: Path, options: Options) -> tuple[list[Case], list[str]]:
        return _find(source, begins.lower())

    return find


def _find(source: Path, begins: str) -> tuple[list[Case], list[str]]:
    """Every part that is there; the official parts are kept. A part without masks is noted and left out."""
    cases, notes = [], []
    of_challenge = [path for path in entries(source) if path.is_dir() and path.name.lower().startswith(begins)]
    for part in PARTS:
        folders = [path for path in of_challenge if part in path.name.lower()]
        pictures = [path for path in folders if path.name.lower().endswith(("_data", "_input"))]
        truths = [path for path in folders if path.name.lower().endswith("_groundtruth")]
        if not pictures:
            continue
        if not truths:
            notes.append(f"{pictures[0].name} has no masks beside it and was left out")
            continue
        for image in entries(pictures[0]):
            if image.suffix.lower() not in (".jpg", ".jpeg"):  # superpixels and lists lie beside them
                continue
            mask = truths[0] / f"{image.stem}_segmentation.png"
            cases.append(
                Case(
                    image.stem,
                    {"image": image, "mask": mask},
                    test=part == "test",
                    validation=part == "validation",
                    problem=None if mask.is_file() else f"there is no mask {mask}",
                )
            )
    return cases, notes


def describe(options: Options) -> Description:
    """Red, green and blue in one file."""
    return Description(("R", "G", "B"), {"background": 0, "lesion": 1}, ".png")


def convert(case: Case, target: Target, options: Options) -> None:
    """As PNG."""
    write_coloured(case.files["image"], case.files["mask"], case, target)
