"""``nnunet_kd dataset``: convert a published data set to nnU-Net's raw format."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_kd.datasets.base import Dataset
    from nnunet_kd.datasets.conversion import Converted
    from nnunet_kd.datasets.options import Option

_DESCRIPTION = """\
Convert a published data set to nnU-Net's raw format. This command downloads nothing: obtain the files yourself, under
their own terms, from the address that --list shows.

  nnunet_kd dataset --list
      show the number, name, content, address and expected files of every data set
  nnunet_kd dataset BraTS2024GLI /data/BraTS2024-training --regions
      create Dataset501_BraTS2024GLI in nnUNet_raw; then run nnUNetv2_plan_and_preprocess -d 501
  nnunet_kd dataset ISLES2022 /data/ISLES-2022 --grid dwi -d 602 --skip-bad
      use another number, and list and leave out the cases that cannot be converted

The folder appears only when the data set is complete. All slices, visits and images of a patient fall on the same side
of every split, as far as file names identify the patient. An official test set remains the test set. If a paper
reports only the number of cases it held out, the same number is drawn reproducibly by name, patient by patient. Files
that nnU-Net can read unchanged become hard links if the disk supports them: editing such a file in place edits the
published one as well.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that declares the options of single data sets only when it parses or prints help.

    The files that declare them import NumPy and SimpleITK, which no other command should wait for.
    """

    _complete = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Declare the options of the data sets and parse the arguments."""
        self._declare_options()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Declare the options of the data sets and return the help text."""
        self._declare_options()
        return super().format_help()

    def _declare_options(self) -> None:
        if self._complete:
            return
        self._complete = True
        group = self.add_argument_group("options of particular data sets")
        for option, datasets in _options().items():
            explained = f"{', '.join(datasets)}: {option.help}"
            if option.choices:
                kind = type(option.default)
                group.add_argument(_flag(option), type=kind, choices=option.choices, help=explained)
            else:
                group.add_argument(_flag(option), action="store_true", default=None, help=explained)


def add_parser(commands: Any) -> None:
    """Add the command ``dataset`` and its arguments."""
    listed = commands.add_parser("dataset", help="convert a published data set to nnU-Net's raw format")
    command = _Parser(prog=listed.prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands.choices["dataset"] = command
    command.add_argument("name", metavar="NAME", nargs="?", help="name of the data set, as --list shows it")
    command.add_argument("source", metavar="SOURCE", nargs="?", type=Path, help="folder that holds the published files")
    command.add_argument("--list", action="store_true", help="describe all data sets and exit")
    command.add_argument(
        "-d", metavar="ID", type=int, help="number of the data set in nnU-Net (default: the one in --list)"
    )
    command.add_argument("--raw", metavar="DIR", type=Path, help="folder to write to (default: $nnUNet_raw)")
    command.add_argument("--skip-bad", action="store_true", help="list and leave out cases that cannot be converted")
    command.add_argument("-np", metavar="N", type=int, default=2, help="number of worker processes (default: 2)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert one data set, or list all of them; return the exit status."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    from nnunet_kd.cli.dataset_folder import required
    from nnunet_kd.datasets.conversion import convert_dataset
    from nnunet_kd.datasets.table import DATASETS

    if arguments.list:
        print("\n".join(_entry(kind()) for kind in DATASETS.values()))
        return 0
    if arguments.name is None or arguments.source is None:
        raise ValueError("give NAME and SOURCE, or --list")
    dataset = _chosen(arguments, DATASETS)
    number = dataset.id if arguments.d is None else arguments.d
    if number < 1:
        raise ValueError(f"a data set's number is at least 1, got {number}")
    if arguments.np < 1:
        raise ValueError(f"-np must be at least 1, got {arguments.np}")
    raw = arguments.raw or required(nnUNet_raw, ", or give --raw")
    _check_number(number, dataset.name)
    made = convert_dataset(
        dataset,
        arguments.source,
        raw,
        number,
        skip_bad=arguments.skip_bad,
        workers=arguments.np,
        progress=_progress,
        preprocessed=Path(nnUNet_preprocessed.require()) if nnUNet_preprocessed.is_set() else None,
    )
    _report(made, number, arguments.raw)
    return 0


def _flag(option: Option) -> str:
    return "--" + option.name.replace("_", "-")


def _options() -> dict[Option, list[str]]:
    """Return every option with the names of the data sets that take it."""
    from nnunet_kd.datasets.options import options_of
    from nnunet_kd.datasets.table import DATASETS

    taken: dict[Option, list[str]] = {}
    for name, dataset in DATASETS.items():
        for option in options_of(dataset):
            taken.setdefault(option, []).append(name)
    return taken


def _chosen(arguments: argparse.Namespace, datasets: Mapping[str, type[Dataset]]) -> Dataset:
    """Return the data set that the arguments name, with its options; upper and lower case are equal."""
    kind = _named(arguments.name, datasets)
    given = {}
    for option, takers in _options().items():
        value = getattr(arguments, option.name)
        if value is None:
            continue
        if kind.name not in takers:
            raise ValueError(f"{_flag(option)} is not for {kind.name}, only for {_in_words(takers)}")
        given[option.name] = value
    return kind(**given)


def _named(name: str, datasets: Mapping[str, type[Dataset]]) -> type[Dataset]:
    by_name = {name.lower(): dataset for name, dataset in datasets.items()}
    asked = name.lower()
    if asked in by_name:
        return by_name[asked]
    near = [name for name in by_name if asked in name] or difflib.get_close_matches(asked, by_name, n=1)
    hint = f"did you mean {by_name[near[0]].name}?" if near else f"there are {', '.join(datasets)}"
    raise ValueError(f"there is no data set {name!r}: {hint}")


def _in_words(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _check_number(number: int, name: str) -> None:
    """Refuse a number if nnU-Net, which looks in all its folders, would confuse the data set with another."""
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    from nnunet_kd.nnunet.dataset_names import are_confused

    full_name, digits = f"Dataset{number:03d}_{name}", f"{number:03d}"
    begun = [int(digits[:length]) for length in range(3, len(digits) + 1)]
    found = [str(other) for one in begun for other in find_candidate_datasets(one)]
    others = [other for other in found if other != full_name and are_confused(full_name, other)]
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
        print(f"before training, copy {made.folder / 'splits_final.json'} into its folder in nnUNet_preprocessed")
    if made.other_splits is not None:
        print(f"{made.other_splits} has other cases or folds, and nnU-Net would use them: remove that file")
    where = "" if raw is None else f"nnUNet_raw={quote(str(raw.absolute()))} "
    print(f"next: {where}nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity")


def _entry(dataset: Dataset) -> str:
    from nnunet_kd.datasets.options import options_of

    lines = {
        "images": dataset.modality,
        "cases": dataset.size,
        "labels": ", ".join(name for name in dataset.describe().labels if name != "background"),
        "licence": dataset.licence,
        "from": dataset.where,
        "files": dataset.layout,
        "options": ", ".join(map(_flag, options_of(type(dataset)))),
    }
    indent = " " * 15
    text = [
        textwrap.fill(f"{label:<9}{content}", 118, initial_indent="     ", subsequent_indent=indent)
        for label, content in lines.items()
        if content
    ]
    return "\n".join([f"{dataset.id}  {dataset.name}", *text])
