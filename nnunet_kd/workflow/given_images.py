"""The images and references that a distillation began with, which must not change while it goes on."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.storage.originals import changed_original, describe_originals
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.workflow.raw_dataset import Cases

FILE = "images.json"


def note_images(out: Path, cases: Cases, left_out: Collection[str]) -> None:
    """Note the images and references of all cases.

    Args:
        out: The folder of the distillation.
        cases: The cases.
        left_out: The cases that cannot be read, which may be mended or removed.
    """
    used = {case: describe_originals(_files(cases, case)) for case in cases.images if case not in left_out}
    write_whole(out / FILE, json.dumps({"cases": used, "left_out": sorted(left_out)}, indent=1))


def check_images(out: Path, cases: Cases) -> None:
    """Refuse images and references other than those that a distillation began with, if it has begun.

    Raises:
        ValueError: If one has changed, is new, or is gone; the message names it and says what to do.
    """
    if not (out / FILE).is_file():
        return
    noted = read_json(out / FILE)
    known = noted["cases"]
    another = f"give another folder than {out}, which was begun with other files, with -o"
    for case, described in known.items():
        if case not in cases.images:
            raise ValueError(f"case {case} is no longer in {cases.folder}: put it back, or {another}")
        files = _files(cases, case)
        gone = {*described} - {path.name for path in files}
        if gone:
            raise ValueError(f"{min(gone)} of case {case} is no longer there: put it back, or {another}")
        path = changed_original(files, described)
        if path is not None:
            state = "has changed" if path.name in described else "is new"
            raise ValueError(f"{path} {state}: restore what was there before, or {another}")
    new = sorted({*cases.images} - {*known} - {*noted["left_out"]})
    if new:
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        raise ValueError(f"case {new[0]}{more} in {cases.folder} is new: take it away, or {another}")


def _files(cases: Cases, case: str) -> list[Path]:
    reference = [cases.labels[case]] if case in cases.labels else []
    return [*cases.images[case], *reference]
