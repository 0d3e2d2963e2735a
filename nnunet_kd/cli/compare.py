"""``nnunet_kd compare``: train methods with stock commands, evaluate them and write a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.cli.launching import add_launcher, check_launcher, device_of, local_launcher, slurm_launcher
from nnunet_kd.nnunet.reading import plans_errors
from nnunet_kd.storage.overwriting import check_kept
from nnunet_kd.storage.writing import check_writable_folder
from nnunet_kd.study.ablations import ABLATIONS, rows_of_ablation
from nnunet_kd.study.runs import list_runs, rows_of_file, rows_of_methods

if TYPE_CHECKING:
    from nnunet_kd.study.engines import Engine
    from nnunet_kd.study.runs import Run
    from nnunet_kd.study.study import Study

_DESCRIPTION = """\
Train the same student with several methods, using nnU-Net's own commands, segment the validation cases of each fold,
evaluate them, and write one report: tables in the layout of the papers, statistical tests, costs, pictures and loss
curves. Finished trainings are not repeated, a stopped study resumes where it stopped, and a method that fails is named
in the report and does not stop the others. Complete segmentations of nnU-Net's own validation are used as they are. If
you ran nnU-Net with --val_best, remove its validation folder: it holds the segmentations of another checkpoint.

  nnunet_kd compare -d 501 -c 3d_fullres -f 0 -p nnUNetPlans -m NoKD KD LogitsKD FitNets CWD IFVD FreeKD DCD -o study
      train fold 0 of each method and write study/report.html and study/report.md; the teacher of that fold must be
      trained already
  nnunet_kd compare ... -f 0 1 2 3 4 --seeds 0 1 2
      train five folds with three seeds each, using the plans nnUNetPlans_seed0 and so on
  nnunet_kd compare ... -m NoKD DCD --ablation dcd
      add the rows of DCD's ablation study; dual_self adds those of dual self-distillation, soft_labels and dra_unet
      those of SAM-DRA-UNet, brainseg_dmif those of BrainSegDMIF, and modalities one for every two or more channels
  nnunet_kd compare ... -m NoKD DCD --rows rows.json
      add your own rows, for example from a rows.json with this content:
      {"DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
       "DCD, weight 0.1": {"trainer": "DCD", "method": {"weight": 0.1}},
       "DCD, averaged": {"trainer": "DCD", "training": {"ema_decay": 0.99}},
       "DRA-UNet": {"trainer": "NoKD", "network": "dra_unet", "arch_kwargs": {"dprm_kernel_size": 5}},
       "half the width": {"trainer": "NoKD", "plans": "nnUNetPlans_r2"}}
      "method" and "training" take the keys of the plans' nnunet_kd block and override its values. "network" takes a
      network of nnunet_kd plan with the widths of the plans, if it has any, "arch_kwargs" overrides keywords of the
      network, and "plans" names other plans of the same data set

The report gives the mean over cases and, as DCD's tables do, the mean over classes; below, metrics of all voxels
pooled, the overall accuracy, and the share of cases rightly told to be positive or negative. For 2-D networks on
volumes it gives the scores of single slices too, as papers about such networks do; slices.csv has their scores.

Several trainings at once (pip install 'nnunet_kd[cluster]'):

  nnunet_kd compare ... --launcher local --devices 0 1 2 3
      as many trainings at once as GPUs, the longest first; --jobs 4 on a CPU, whose cores they share
  nnunet_kd compare ... --launcher slurm --slurm-partition gpu --slurm-time 24:00:00 --slurm-cpus 12
      one Slurm job for every training and one for the report. A training whose time is over, or whose node has failed,
      goes on in another job. The command watches; end it with Ctrl-C and give it again at any time
  nnunet_kd compare ... --launcher slurm --submit-only; nnunet_kd compare ... --status; nnunet_kd compare ... --cancel
      submit the jobs and end; print how far they are; end them. What is trained is kept, and the same command goes on

A method is a trainer, with or without the prefix nnUNetTrainer. The first row is the baseline. All methods share the
schedule of the plans (nnunet_kd.training) and train the same network, unless a row asks for another one. Without a
student in the plans, some trainers would train a quarter of the width and others the full width, and the study is
refused: write the student's plans with nnunet_kd plan first. Only one comparison can run in a folder at a time.
"""

WRITTEN = ("metrics.csv", "metrics.json", "report.html", "report.md", "costs.json", "slices.csv", "slices.json")


def add_parser(commands: Any) -> None:
    """Add the command ``compare`` and its arguments."""
    command = commands.add_parser(
        "compare",
        help="train and evaluate several methods, and write one report",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", required=True, help="number or name of the data set")
    command.add_argument(
        "-c", metavar="CONFIG", default="3d_fullres", help="nnU-Net configuration (default: 3d_fullres)"
    )
    command.add_argument("-f", metavar="FOLD", type=int, nargs="+", default=[0], help="folds to train (default: 0)")
    command.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="name of the student's plans (default: nnUNetPlans)"
    )
    command.add_argument(
        "-m", metavar="METHOD", nargs="+", default=[], help="methods to train; the first is the baseline"
    )
    command.add_argument(
        "--seeds",
        metavar="SEED",
        type=int,
        nargs="+",
        help="train every method once per seed (default: the seed of the plans)",
    )
    command.add_argument(
        "--ablation", metavar="NAME", help=f"add the rows of an ablation study: {', '.join(ABLATIONS)}"
    )
    command.add_argument("--rows", metavar="FILE", type=Path, help="add the rows of a JSON file, as in the example")
    command.add_argument(
        "-o", metavar="DIR", type=Path, required=True, help="folder for the report, logs and predictions"
    )
    command.add_argument(
        "-device", metavar="DEVICE", choices=("cpu", "cuda"), help="cpu or cuda (default: cuda if available)"
    )
    command.add_argument(
        "--tolerance", metavar="MM", type=float, default=1.0, help="tolerance of the NSD in mm (default: 1)"
    )
    command.add_argument(
        "-np", metavar="N", type=int, default=2, help="worker processes of the evaluation (default: 2)"
    )
    command.add_argument(
        "--trust",
        action="store_true",
        help="allow plans to name networks of any package, and existing results to hold code",
    )
    jobs = add_launcher(command, "the trainings")
    jobs.add_argument("--plan", action="store_true", help="print trainings, commands, hours and disk space, and stop")
    jobs.add_argument("--probe", action="store_true", help="with --plan: measure 20 steps of trainers without a log")
    jobs.add_argument("--train-teachers", action="store_true", help="train the teachers that are missing first")
    jobs.add_argument("--submit-only", action="store_true", help="with --launcher slurm: do not watch the jobs")
    jobs.add_argument("--status", action="store_true", help="print how far the jobs of this study are, and do nothing")
    jobs.add_argument("--cancel", action="store_true", help="end the Slurm jobs of this study, and do nothing else")
    jobs.add_argument("--report-only", action="store_true", help="train nothing: report on what is trained")
    command.set_defaults(run=run, goes_on="; give the same command to go on")


def run(arguments: argparse.Namespace) -> int:
    """Run the study; return 1 if a method failed, else 0."""
    if arguments.status or arguments.cancel:
        from nnunet_kd.study.looking import cancel_jobs, print_status

        (cancel_jobs if arguments.cancel else print_status)(arguments.o.resolve())
        return 0
    check_launcher(arguments)
    if arguments.probe and not arguments.plan:
        raise ValueError("--probe belongs to --plan")
    if arguments.submit_only and arguments.launcher not in ("slurm", "none"):
        raise ValueError("--submit-only belongs to --launcher slurm")
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_kd.cli.dataset_folder import open_experiment, preprocessed_folder, required
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
        rows += rows_of_ablation(arguments.ablation, list(experiment.dataset_json["channel_names"].values()))
    if not rows:
        raise ValueError("nothing to compare: name methods with -m, or rows with --rows")
    runs = list_runs(arguments.p, rows, arguments.f, arguments.seeds or [None])
    folders = (required(nnUNet_raw), required(nnUNet_preprocessed), required(nnUNet_results))
    device = device_of(arguments)
    named = {row.network.plans for row in rows if row.network.plans is not None}
    others = {name: open_experiment(arguments.d, name, arguments.c, arguments.trust).plans for name in sorted(named)}
    study = Study(folder.name, arguments.c, experiment.plans, folders, arguments.o.resolve(), device, others)
    if arguments.plan:
        _print_plan(arguments, study, runs)
        return 0
    if arguments.launcher == "slurm" and not arguments.report_only:
        return _on_cluster(arguments, study, runs)
    engine = _engine(arguments, study)
    teachers_too = arguments.train_teachers and not arguments.report_only
    failed = compare_methods(study, runs, arguments.tolerance, arguments.np, arguments.trust, engine, teachers_too)
    return 1 if failed and not arguments.report_only else 0


def _print_plan(arguments: argparse.Namespace, study: Study, runs: Sequence[Run]) -> None:
    """Print what the study will cost."""
    from nnunet_kd.study.comparison import check_study
    from nnunet_kd.study.forecast import forecast, forecast_table

    check_study(study, runs, arguments.trust, arguments.train_teachers)
    forecasts = forecast(study, runs, arguments.probe)
    print(forecast_table(forecasts, len(arguments.devices or ()) or arguments.jobs or 1))


def _engine(arguments: argparse.Namespace, study: Study) -> Engine:
    """Return what carries out the trainings."""
    from nnunet_kd.study.engines import InTurn, Nothing, Together
    from nnunet_kd.study.looking import refuse_beside_jobs

    if arguments.report_only:
        return Nothing(study.out)
    refuse_beside_jobs(study.out)
    if arguments.launcher != "local":
        return InTurn(study.commands)
    return Together(local_launcher(arguments, study.out), study.out, study.commands)


def _on_cluster(arguments: argparse.Namespace, study: Study, runs: Sequence[Run]) -> int:
    """Submit the jobs of the study, and watch them unless that is not wanted."""
    from nnunet_kd.study.cluster import ClusterStudy
    from nnunet_kd.study.trainings import Command

    given = [word for word in arguments.words if word != "--submit-only"]  # the same report with and without it
    words = ("nnunet_kd", *given, "-device", study.device, "--launcher", "none", "--report-only")
    launched = ClusterStudy(study, runs, slurm_launcher(arguments, study.out), Command("report", "report", words))
    launched.submit(arguments.trust, arguments.train_teachers)
    if arguments.submit_only:
        return 0
    try:
        failed = launched.watch()
    except KeyboardInterrupt:
        print("the jobs go on: give the same command to watch them again, or add --cancel to end them")
        raise
    return 1 if failed else 0
