"""``nnunet_kd dataset``: a published data set into nnU-Net's raw format."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_kd.datasets.conversion import Converted, Format

_DESCRIPTION = """\
Turn a data set of the papers, as it was published, into nnU-Net's raw format. Nothing is downloaded: you get the data
where --list says, under their own terms.

  nnunet_kd dataset --list
      numbers, names, what they hold, where to get them, which files are expected
  nnunet_kd dataset BraTS2024GLI /data/BraTS2024-training --regions
      makes Dataset501_BraTS2024GLI in nnUNet_raw; then nnUNetv2_plan_and_preprocess -d 501
  nnunet_kd dataset ISLES2022 /data/ISLES-2022 --grid dwi -d 602 --skip-bad
      under another number; cases that cannot be converted are listed and left out

The data set appears when it is whole. Slices, visits or pictures of a patient are not parted by a split, as far as file
names tell. Official test sets stay as they are; where a paper prints only how many cases it held out, so many are drawn
by their names, whole patients, the same ones each time. Files that are as nnU-Net wants them are hard links where the
disk allows it: to edit one in place is to edit what was published.
"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "dataset",
        help="convert a data set of the papers into nnU-Net's raw format",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", metavar="NAME", nargs="?", help="of the data set, see --list")
    command.add_argument("source", metavar="SOURCE", nargs="?", type=Path, help="folder with the published files")
    command.add_argument("--list", action="store_true", help="say which data sets there are")
    command.add_argument("-d", metavar="ID", type=int, help="number in nnU-Net (default: see --list)")
    command.add_argument("--raw", metavar="DIR", type=Path, help="instead of nnUNet_raw")
    command.add_argument("--regions", action="store_true", help="BraTS: regions WT, TC, ET (RC) instead of classes")
    command.add_argument(
        "--grid",
        choices=("flair", "dwi"),
        help="ISLES2022: grid of all images: flair (default), where small lesions may lie between thick slices and be "
        "lost, which is said, or dwi, on which they were drawn",
    )
    command.add_argument("--volumes", action="store_true", help="TCGALGG: a volume a patient instead of slices")
    command.add_argument("--t2", action="store_true", help="FCD2023: T2w as a third channel, zeros where there is none")
    command.add_argument("--classes", action="store_true", help="BUSI: benign and malignant instead of lesion")
    command.add_argument("--organs", type=int, choices=(8, 13), help="Synapse: how many (default: 13)")
    command.add_argument("--skip-bad", action="store_true", help="leave out cases that cannot be converted")
    command.add_argument("-np", metavar="N", type=int, default=2, help="processes (default: 2)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, or list; returns the exit status."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    from nnunet_kd.cli.dataset_folder import required
    from nnunet_kd.datasets.conversion import Options, convert_dataset
    from nnunet_kd.datasets.formats import FORMATS

    if arguments.list:
        print("\n".join(map(_entry, FORMATS.values())))
        return 0
    if arguments.name is None or arguments.source is None:
        raise ValueError("give NAME and SOURCE, or --list")
    by_name = {name.lower(): form for name, form in FORMATS.items()}
    if arguments.name.lower() not in by_name:
        asked = arguments.name.lower()
        near = [name for name in by_name if asked in name] or difflib.get_close_matches(asked, by_name, n=1)
        hint = f"did you mean {by_name[near[0]].name}?" if near else f"there are {', '.join(FORMATS)}"
        raise ValueError(f"there is no data set {arguments.name!r}: {hint}")
    form = by_name[arguments.name.lower()]
    given = {key: getattr(arguments, key) for key in ("regions", "grid", "volumes", "classes", "organs", "t2")}
    chosen = {key: value for key, value in given.items() if value not in (None, False)}
    for key in chosen:
        if key not in form.options:
            raise ValueError(f"--{key} is not for {form.name}")
    number = form.id if arguments.d is None else arguments.d
    if number < 1:
        raise ValueError(f"a data set's number is at least 1, got {number}")
    if arguments.np < 1:
        raise ValueError(f"-np must be at least 1, got {arguments.np}")
    raw = arguments.raw or required(nnUNet_raw, ", or give --raw")
    _check_number(number, form)
    preprocessed = Path(nnUNet_preprocessed.require()) if nnUNet_preprocessed.is_set() else None

    made = convert_dataset(
        form,
        arguments.source,
        raw,
        number,
        Options(**chosen),
        arguments.skip_bad,
        arguments.np,
        _progress,
        preprocessed,
    )
    _report(made, number, arguments.raw)
    return 0


def _check_number(number: int, form: Format) -> None:
    """That nnU-Net, which looks in all its folders, would find one data set of this number, and of no other two."""
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    from nnunet_kd.nnunet.dataset_names import are_confused

    name, digits = f"Dataset{number:03d}_{form.name}", f"{number:03d}"
    begun = [int(digits[:length]) for length in range(3, len(digits) + 1)]
    found = [str(other) for one in begun for other in find_candidate_datasets(one)]
    others = [other for other in found if other != name and are_confused(name, other)]
    if others:
        raise FileExistsError(f"nnU-Net has {others[0]} already: choose another number with -d")


def _progress(work: Iterable[Any], count: int) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(work, total=count, unit="case")
    return bar


def _report(made: Converted, number: int, raw: Path | None) -> None:
    for line in made.notes:
        print(line)
    for line in made.skipped:
        print(f"skipped {line}")
    print(f"{made.training} cases for training, {made.test} for testing in {made.folder}")
    if made.placed is not None:
        print(f"its splits are in {made.placed}, where nnU-Net looks for them")
    elif made.splits:
        print(f"copy {made.folder / 'splits_final.json'} into its folder of nnUNet_preprocessed before training")
    if made.other_splits is not None:
        print(f"{made.other_splits} is there and has other cases or folds, which nnU-Net would use: remove it")
    where = "" if raw is None else f"nnUNet_raw={quote(str(raw.absolute()))} "
    print(f"next: {where}nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity")


def _entry(form: Format) -> str:
    from nnunet_kd.datasets.conversion import Options

    described = form.describe(Options())
    lines = {
        "images": form.modality,
        "cases": form.size,
        "labels": ", ".join(name for name in described.labels if name != "background"),
        "licence": form.licence,
        "from": form.where,
        "files": form.layout,
        "options": ", ".join(f"--{name}" for name in form.options),
    }
    indent = " " * 15
    text = [
        textwrap.fill(f"{label:<9}{content}", 118, initial_indent="     ", subsequent_indent=indent)
        for label, content in lines.items()
        if content
    ]
    return "\n".join([f"{form.id}  {form.name}", *text])
