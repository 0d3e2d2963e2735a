"""``nnunet_kd evaluate``: metrics of segmentations for every case, and statistical tests between methods."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.raw_cases import lists_cases, training_labels
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans
from nnunet_kd.storage.overwriting import check_kept
from nnunet_kd.storage.writing import check_writable_folder

if TYPE_CHECKING:
    from nnunet_kd.evaluation.protocol import Evaluation
    from nnunet_kd.evaluation.rows import Row

RESULTS = ("metrics.csv", "metrics.json", "summary.md")
RESULTS_OF_SLICES = ("slices.csv", "slices.json")
_DESCRIPTION = """\
Compare one or more folders of segmentations with reference segmentations. For every case and structure (a label or a
region), measure Dice, IoU, precision, sensitivity, specificity, accuracy, HD95 (mm), NSD and volume difference.

  nnunet_kd evaluate -ref labelsTs -pred DIR_NoKD -pred DIR_DCD -djfile dataset.json -pfile plans.json -o OUT
      write every value to OUT/metrics.csv and OUT/metrics.json, and means and tests to OUT/summary.md
  nnunet_kd evaluate ... -pred NoKD=DIR1 -pred DCD=DIR2 --tolerance 2 --tolerance core=1
      name the methods; set one NSD tolerance for all structures and another one for the structure "core"
  nnunet_kd evaluate -pred DIR -djfile nnUNet_raw/Dataset501_X/dataset.json -o OUT
      take the references that dataset.json lists under "dataset", for the cases in DIR
  nnunet_kd evaluate ... --slices
      score slices too, as papers about 2-D networks do, and write the scores of those with a structure to
      OUT/slices.csv
  nnunet_kd evaluate ... --scoring transunet
      score Dice and HD95 as in the published tables of Synapse: distances in voxels; a missed structure has HD95 0; a
      structure that the reference lacks has HD95 0, and Dice 1 if it is predicted, 0 if not (as published)

OUT/summary.md gives two means of all structures: "mean over cases" averages the structures of each case first, "mean
over classes" averages the cases of each structure first, as DCD's tables do. Further tables pool the voxels of all
cases in one confusion matrix (mIoU, Dice, accuracy, specificity and sensitivity of VM-UNet's tables), and give the
overall accuracy of all labels together and the share of cases rightly told to be positive or negative. OUT/metrics.csv
has the counts from which they are computed.

The first -pred is the baseline, against which the others are tested. A prediction without a reference is left out with
a warning; a reference without a prediction is an error. A structure that is absent from both images has no value; if it
is absent from only one, it scores Dice 0, NSD 0 and the image's diagonal as HD95. Voxels are compared by their position
in the arrays; a warning tells you if the direction or origin of two images differ. Images with several values per
voxel, such as colour images, are not segmentations and are refused.
"""


def add_parser(commands: Any) -> None:
    """Add the command ``evaluate`` and its arguments."""
    command = commands.add_parser(
        "evaluate",
        help="measure segmentations and test methods against each other",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "-ref", metavar="DIR", type=Path, help="folder of references (default: the labels that dataset.json lists)"
    )
    command.add_argument(
        "-pred",
        metavar="[NAME=]DIR",
        action="append",
        required=True,
        help="folder of segmentations; repeat it to compare methods",
    )
    command.add_argument("-djfile", metavar="FILE", type=Path, required=True, help="the data set's dataset.json")
    command.add_argument(
        "-pfile",
        metavar="FILE",
        type=Path,
        help="plans.json, which names the image reader (default: a reader that fits the files)",
    )
    command.add_argument("-o", metavar="DIR", type=Path, required=True, help="folder for the results")
    command.add_argument(
        "--tolerance", metavar="[NAME=]MM", action="append", default=[], help="tolerance of the NSD in mm (default: 1)"
    )
    command.add_argument(
        "--scoring",
        choices=("mm", "transunet"),
        default="mm",
        help="rules of Dice and HD95; with transunet, tolerances are in voxels too (default: mm)",
    )
    command.add_argument(
        "--slices",
        action="store_true",
        help="also score every slice along the axis that the plans of -pfile cut, else along the files' first axis",
    )
    command.add_argument("-np", metavar="N", type=int, default=2, help="number of worker processes (default: 2)")
    command.add_argument("--overwrite", action="store_true", help="replace earlier results in the folder -o")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the segmentations and write the results; return the exit status."""
    predictions = _named_folders(arguments.pred)
    tolerances = _tolerances(arguments.tolerance)
    if arguments.np < 1:
        raise ValueError(f"-np must be at least 1, got {arguments.np}")
    results = [arguments.o / name for name in (*RESULTS, *(RESULTS_OF_SLICES if arguments.slices else ()))]
    check_writable_folder(arguments.o)
    inputs = [arguments.djfile, *([] if arguments.pfile is None else [arguments.pfile])]
    check_kept(inputs, results, "Give another folder with -o")
    for path in results:
        if path.exists() and not arguments.overwrite:
            raise FileExistsError(f"{path} already exists: give another folder with -o, or replace it with --overwrite")
    dataset_json = read_dataset_json(arguments.djfile)
    plans = None if arguments.pfile is None else read_plans(arguments.pfile)
    reference = arguments.ref or _listed_references(arguments.djfile, dataset_json)

    from tqdm import tqdm

    from nnunet_kd.evaluation.folders import evaluate_folders, find_cases
    from nnunet_kd.evaluation.protocol import read_evaluation, slice_axis
    from nnunet_kd.evaluation.rows import write_rows
    from nnunet_kd.evaluation.summary import summary_table
    from nnunet_kd.storage.writing import write_whole

    ending = dataset_json["file_ending"]
    cases = find_cases(reference, predictions, ending)
    files = {case: reference / f"{case}{ending}" if isinstance(reference, Path) else reference[case] for case in cases}
    for case, path in files.items():
        if not isinstance(reference, Path) and not path.is_file():
            raise FileNotFoundError(
                f"case {case}: there is no {path}, which {arguments.djfile} lists: relative paths start from the "
                "folder of that file, so give the dataset.json of the raw data set"
            )
    evaluation = read_evaluation(dataset_json, plans, files[cases[0]], tolerances.pop("", 1.0), tolerances)
    evaluation = replace(evaluation, scoring=arguments.scoring)

    def evaluated(evaluation: Evaluation, what: str, **options: Callable[[str], None]) -> list[Row]:
        return evaluate_folders(
            reference,
            predictions,
            evaluation,
            arguments.np,
            lambda work, count: tqdm(work, total=count, unit="case", desc=what),
            **options,
        )

    slices = []
    if arguments.slices:  # first, because images without slices are refused
        of_slices = replace(evaluation, slice_axis=slice_axis(plans))
        slices = evaluated(of_slices, "evaluating slices", warn=lambda _: None)  # the volumes' warnings are the same
    rows = evaluated(evaluation, "evaluating")
    table = summary_table(rows, baseline=next(iter(predictions)), scoring=arguments.scoring, slices=slices)
    written = write_rows(rows, arguments.o)
    written += write_rows(slices, arguments.o, "slices") if slices else []
    write_whole(arguments.o / "summary.md", table + "\n")
    print(table)
    print("\nwrote " + ", ".join(str(path) for path in [*written, arguments.o / "summary.md"]))
    return 0


def _listed_references(path: Path, dataset_json: dict[str, Any]) -> dict[str, Path]:
    """Map each case to the label that ``dataset.json`` lists; relative paths start from the folder of that file."""
    if not lists_cases(dataset_json):
        raise ValueError(f'give a folder of references with -ref: {path} lists no cases under "dataset"')
    return training_labels(path.parent, dataset_json)


def _named_folders(given: list[str]) -> dict[str, Path]:
    """Map each method to its folder; without a given name, the name of the folder is that of the method."""
    named: dict[str, Path] = {}
    for entry in given:
        name, equals, folder = ("", "", entry) if Path(entry).is_dir() else entry.partition("=")
        path = Path(folder if equals else entry)
        name = name if equals else path.resolve().name
        if not name:
            raise ValueError(f"name the method, as in -pred NAME=DIR, got {entry!r}")
        if name in named:
            raise ValueError(f"two methods are called {name!r}: name them, as in -pred NAME=DIR")
        named[name] = path
    return named


def _tolerances(given: list[str]) -> dict[str, float]:
    """Map each structure to its tolerance in mm; the key "" holds the tolerance of all others."""
    tolerances = {}
    for entry in given:
        name, equals, number = entry.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise ValueError(f"--tolerance must be [NAME=]MM above 0, got {entry!r}")
        tolerances[name if equals else ""] = value
    return tolerances
