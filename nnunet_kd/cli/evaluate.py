"""``nnunet_kd evaluate``: metrics of segmentations, case by case, and their statistics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.raw_cases import lists_cases, training_labels
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans
from nnunet_kd.storage.overwriting import check_kept
from nnunet_kd.storage.writing import check_writable_folder

RESULTS = ("metrics.csv", "metrics.json", "summary.md")
_DESCRIPTION = """\
Compare one or more folders of segmentations with a folder of references: Dice, IoU, precision, sensitivity,
specificity, accuracy, HD95 (mm), NSD and volume difference of every case and structure (label or region).

  nnunet_kd evaluate -ref labelsTs -pred DIR_NoKD -pred DIR_DCD -djfile dataset.json -pfile plans.json -o OUT
      writes OUT/metrics.csv and OUT/metrics.json (every case) and OUT/summary.md (means and tests)
  nnunet_kd evaluate ... -pred NoKD=DIR1 -pred DCD=DIR2 --tolerance 2 --tolerance core=1
      names the methods; a tolerance of the NSD for all structures, and another for one

  nnunet_kd evaluate -pred DIR -djfile nnUNet_raw/Dataset501_X/dataset.json -o OUT
      references are the labels that dataset.json lists under "dataset", of the cases that DIR has

The first -pred is the baseline the others are tested against. Predictions without a reference are left out, and a
warning says so; a reference without a prediction is an error. A structure that is missing in both images has no
value; one that is missing in one of them scores Dice 0, NSD 0 and the image's diagonal as HD95. Voxels are compared as
they lie in the files; where direction or origin say that they lie elsewhere, a warning does too. Images that hold
several values per voxel, as colour pictures do, are no segmentations and are refused.
"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "evaluate",
        help="measure segmentations and compare methods",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "-ref", metavar="DIR", type=Path, help="folder of references (default: the labels that dataset.json lists)"
    )
    command.add_argument(
        "-pred", metavar="[NAME=]DIR", action="append", required=True, help="folder of segmentations; may be repeated"
    )
    command.add_argument("-djfile", metavar="FILE", type=Path, required=True, help="the data set's dataset.json")
    command.add_argument("-pfile", metavar="FILE", type=Path, help="plans.json: says how images are read")
    command.add_argument("-o", metavar="DIR", type=Path, required=True, help="folder to write to")
    command.add_argument(
        "--tolerance", metavar="[NAME=]MM", action="append", default=[], help="tolerance of the NSD (default: 1)"
    )
    command.add_argument("-np", metavar="N", type=int, default=2, help="processes (default: 2)")
    command.add_argument("--overwrite", action="store_true", help="replace the results that are in the folder -o")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns the exit status."""
    predictions = _named_folders(arguments.pred)
    tolerances = _tolerances(arguments.tolerance)
    if arguments.np < 1:
        raise ValueError(f"-np must be at least 1, got {arguments.np}")
    check_writable_folder(arguments.o)
    inputs = [arguments.djfile, *([] if arguments.pfile is None else [arguments.pfile])]
    check_kept(inputs, [arguments.o / name for name in RESULTS], "Give another folder with -o")
    for path in (arguments.o / name for name in RESULTS):
        if path.exists() and not arguments.overwrite:
            raise FileExistsError(f"{path} is there already: give another folder with -o, or --overwrite to replace it")
    dataset_json = read_dataset_json(arguments.djfile)
    plans = None if arguments.pfile is None else read_plans(arguments.pfile)
    reference = arguments.ref or _listed_references(arguments.djfile, dataset_json)

    from tqdm import tqdm

    from nnunet_kd.evaluation.folders import evaluate_folders, find_cases
    from nnunet_kd.evaluation.protocol import read_evaluation
    from nnunet_kd.evaluation.rows import write_rows
    from nnunet_kd.evaluation.summary import summary_table
    from nnunet_kd.storage.writing import write_whole

    ending = dataset_json["file_ending"]
    cases = find_cases(reference, predictions, ending)
    files = {case: reference / f"{case}{ending}" if isinstance(reference, Path) else reference[case] for case in cases}
    for case, path in files.items():
        if not isinstance(reference, Path) and not path.is_file():
            raise FileNotFoundError(
                f"case {case}: there is no {path}, which {arguments.djfile} lists: paths that are not absolute begin "
                "at the folder of that file, so give the dataset.json of the raw data set"
            )
    evaluation = read_evaluation(dataset_json, plans, files[cases[0]], tolerances.pop("", 1.0), tolerances)
    rows = evaluate_folders(
        reference,
        predictions,
        evaluation,
        arguments.np,
        lambda work, count: tqdm(work, total=count, unit="case", desc="evaluating"),
    )
    table = summary_table(rows, baseline=next(iter(predictions)))
    written = write_rows(rows, arguments.o)
    write_whole(arguments.o / "summary.md", table + "\n")
    print(table)
    print("\nwrote " + ", ".join(str(path) for path in [*written, arguments.o / "summary.md"]))
    return 0


def _listed_references(path: Path, dataset_json: dict[str, Any]) -> dict[str, Path]:
    """Case -> label that ``dataset.json`` lists; its paths may begin at its own folder."""
    if not lists_cases(dataset_json):
        raise ValueError(f'give a folder of references with -ref: {path} lists no cases under "dataset"')
    return training_labels(path.parent, dataset_json)


def _named_folders(given: list[str]) -> dict[str, Path]:
    """Method -> folder; a folder without a name is called after its last part."""
    named: dict[str, Path] = {}
    for entry in given:
        name, equals, folder = ("", "", entry) if Path(entry).is_dir() else entry.partition("=")
        path = Path(folder if equals else entry)
        name = name if equals else path.resolve().name
        if not name:
            raise ValueError(f"a folder needs a method's name, -pred NAME=DIR, got {entry!r}")
        if name in named:
            raise ValueError(f"two folders are called {name!r}: name them, -pred NAME=DIR")
        named[name] = path
    return named


def _tolerances(given: list[str]) -> dict[str, float]:
    """Structure -> mm; the key "" is for all others."""
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
