"""``nnunet_kd compare``: train methods with stock commands, evaluate them, write the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_kd.nnunet.reading import plans_errors
from nnunet_kd.storage.overwriting import check_kept
from nnunet_kd.storage.writing import check_writable_folder
from nnunet_kd.study.runs import ABLATIONS, list_runs, rows_of_ablation, rows_of_file, rows_of_methods

_DESCRIPTION = """\
Train the same student by several methods with nnU-Net's own commands, segment the validation cases of each fold,
evaluate them, and write one report: tables in the papers' layout, tests, costs, pictures, curves. What is trained
already is not trained again; a study that was stopped goes on where it was; a method that fails is named in the
report and does not stop the others. Segmentations are those of nnU-Net's own validation where it is whole: it writes
those of --val_best into the same folder, which you remove for those of the last checkpoint.

  nnunet_kd compare -d 501 -c 3d_fullres -f 0 -p nnUNetPlans -m NoKD KD LogitsKD FitNets CWD IFVD FreeKD DCD -o study
      trains fold 0 of each, writes study/report.html and study/report.md; the teacher of the fold is there already
  nnunet_kd compare ... -f 0 1 2 3 4 --seeds 0 1 2
      five folds, three seeds each (plans nnUNetPlans_seed0, ...)
  nnunet_kd compare ... -m NoKD DCD --ablation dcd
      the rows of DCD's ablation beside them; dual_self has those of dual self-distillation
  nnunet_kd compare ... -m NoKD DCD --rows rows.json
      rows of your own: {"DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
                         "DCD, weight 0.1": {"trainer": "DCD", "method": {"weight": 0.1}},
                         "DCD, averaged": {"trainer": "DCD", "training": {"ema_decay": 0.99}}}
      method and training are those of the plans' nnunet_kd block, and change what the plans have

-m are trainers, with or without their prefix nnUNetTrainer. The first row is the baseline. The schedule is that of the
plans (nnunet_kd.training), so it is the same for all, and so must the networks be: where the plans name no student,
some trainers take a quarter of the width and others all of it, and the study is refused. Only one comparison at a time
works in a folder.
"""

WRITTEN = ("metrics.csv", "metrics.json", "report.html", "report.md", "costs.json")


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "compare",
        help="train methods, evaluate them, write the report",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", required=True, help="data set, as a number or a name")
    command.add_argument("-c", metavar="CONFIG", default="3d_fullres", help="configuration (default: 3d_fullres)")
    command.add_argument("-f", metavar="FOLD", type=int, nargs="+", default=[0], help="folds (default: 0)")
    command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    command.add_argument("-m", metavar="METHOD", nargs="+", default=[], help="methods; the first row is the baseline")
    command.add_argument("--seeds", metavar="SEED", type=int, nargs="+", help="train every method with each of these")
    command.add_argument("--ablation", metavar="NAME", help=f"add the rows of an ablation: {', '.join(ABLATIONS)}")
    command.add_argument("--rows", metavar="FILE", type=Path, help="add the rows of a file (JSON)")
    command.add_argument("-o", metavar="DIR", type=Path, required=True, help="folder for the report, logs, predictions")
    command.add_argument("-device", metavar="DEVICE", choices=("cpu", "cuda"), help="default: cuda where there is one")
    command.add_argument("--tolerance", metavar="MM", type=float, default=1.0, help="tolerance of the NSD (default: 1)")
    command.add_argument("-np", metavar="N", type=int, default=2, help="processes of the evaluation (default: 2)")
    command.add_argument(
        "--trust", action="store_true", help="plans may name networks of any package, results hold code"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the study; returns 1 where a method failed."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_kd.cli.dataset_folder import open_experiment, preprocessed_folder, required
    from nnunet_kd.cli.device import default_device
    from nnunet_kd.study.comparison import compare_methods
    from nnunet_kd.study.study import Study

    for name, values in (("-f", arguments.f), ("-m", arguments.m), ("--seeds", arguments.seeds or [])):
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has an entry twice: {' '.join(map(str, values))}")
    for name, numbers in (("-f", arguments.f), ("--seeds", arguments.seeds or [])):
        if min(numbers, default=0) < 0:
            raise ValueError(f"{name} has a negative number: {' '.join(map(str, numbers))}")
    if arguments.np < 1 or not 0 < arguments.tolerance < float("inf"):
        raise ValueError("-np must be at least 1 and --tolerance above 0")
    check_writable_folder(arguments.o)
    folder = preprocessed_folder(arguments.d)
    experiment = open_experiment(arguments.d, arguments.p, arguments.c, arguments.trust)
    with plans_errors(folder / f"{arguments.p}.json"):
        previous = PlansManager(experiment.plans).get_configuration(arguments.c).previous_stage_name
    if previous is not None:
        raise NotImplementedError(f"{arguments.c} needs segmentations by {previous}: cascades are not compared")
    rows = rows_of_methods(arguments.m)
    if arguments.rows is not None:
        check_kept([arguments.rows], [arguments.o / name for name in WRITTEN], "Give another folder with -o")
        rows += rows_of_file(arguments.rows)
    if arguments.ablation is not None:
        rows += rows_of_ablation(arguments.ablation)
    if not rows:
        raise ValueError("nothing to compare: name methods with -m, or rows with --rows")
    runs = list_runs(arguments.p, rows, arguments.f, arguments.seeds or [None])
    folders = (required(nnUNet_raw), required(nnUNet_preprocessed), required(nnUNet_results))
    device = arguments.device or default_device()
    study = Study(folder.name, arguments.c, experiment.plans, folders, arguments.o.resolve(), device)
    failed = compare_methods(study, runs, arguments.tolerance, arguments.np, arguments.trust)
    return 1 if failed else 0
