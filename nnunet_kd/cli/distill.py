"""``nnunet_kd distill``: from a trained model and images to a small student."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from nnunet_kd.cli.launching import add_launcher, check_launcher, launcher_words
from nnunet_kd.storage.overwriting import check_kept, lies_in
from nnunet_kd.storage.writing import check_writable_folder

_DESCRIPTION = """\
Distil a trained nnU-Net into a small student on your own images, which need no labels. The teacher is a zip file that
nnU-Net or this package exported, a results folder, or a name in nnUNet_results; of several folds, the mean teaches. It
segments the images once and its logits are stored. The student begins as the pruned teacher, learns from the stored
logits and from the references that some cases may have, and is exported as a model of stock nnU-Net. If its teacher is
no U-Net, as nnU-Net's Primus is not, the student is nnU-Net's default U-Net and begins with random weights.

  nnunet_kd distill -m teacher.zip -i IMAGES -o OUT
      no labels anywhere; the images are named CASE_0000.nii.gz, CASE_0001.nii.gz and so on, as for nnU-Net
  nnunet_kd distill -m FOLDER -f all -i IMAGES -l LABELS -r 8 -o OUT
      all folds teach a student of an eighth of the width; LABELS holds CASE.nii.gz of some or all cases
  nnunet_kd distill ... --spacing 2 2 2
      the student sees the images at 2 mm, which is faster and less exact
  nnunet_kd distill ... --channels 0 3
      the student sees the first and the fourth channel of the teacher alone; IMAGES still holds all of them
  nnunet_kd distill ... --labels labels.json
      other structures: {"kidney": ["left kidney", "right kidney"], "tumour": ["tumour"]} merges two and drops
      all others. The student's labels are numbered 1, 2, ... in the order of the file, and so are those in LABELS
  nnunet_kd distill ... --launcher local --devices 0 1
      the teacher segments the images on two GPUs at once; --launcher slurm --jobs 8 does so in eight Slurm jobs
  nnunet_kd distill ... --dry-run
      print the commands and run none of them

OUT/student.zip is the student, and OUT/report.html compares it with its teacher on images that are kept back. Every
step is a command of nnU-Net or nnunet_kd, which is shown as it runs and can be run by hand with the variables that
--dry-run prints. If it is stopped, the same command continues it, as long as the images have not changed.
"""


def add_parser(commands: Any) -> None:
    """Add the command ``distill`` and its arguments."""
    command = commands.add_parser(
        "distill",
        help="make a small student of a model that you already have, with or without labels",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "-m", metavar="MODEL", required=True, help="teacher: a zip file, a results folder or its name in nnUNet_results"
    )
    command.add_argument("-f", metavar="FOLD", nargs="+", help="folds that teach, numbers or all (default: every fold)")
    command.add_argument("-i", metavar="IMAGES", type=Path, required=True, help="folder of images")
    command.add_argument("-l", metavar="LABELS", type=Path, help="folder of references of some or all images")
    command.add_argument("-o", metavar="OUT", type=Path, required=True, help="folder for everything")
    command.add_argument(
        "-r", metavar="R", type=float, default=4, help="number that divides the width of the network (default: 4)"
    )
    command.add_argument(
        "--spacing", metavar="MM", type=float, nargs="+", help="voxel size in mm, z y x (default: the teacher's)"
    )
    command.add_argument(
        "--channels",
        metavar="N",
        type=int,
        nargs="+",
        help="the teacher's channels that the student sees (default: all)",
    )
    command.add_argument(
        "--labels", metavar="FILE", type=Path, help="JSON file with the teacher's structures for each of the student's"
    )
    command.add_argument("--epochs", metavar="N", type=int, default=100, help="epochs to train (default: 100)")
    command.add_argument("--iterations", metavar="N", type=int, default=250, help="steps per epoch (default: 250)")
    command.add_argument("--seed", metavar="N", type=int, default=1234, help="seed of the training (default: 1234)")
    command.add_argument(
        "--kept-back",
        metavar="SHARE",
        type=float,
        default=0.2,
        help="share of cases kept for the report (default: 0.2)",
    )
    command.add_argument("--disable_tta", action="store_true", help="let the teacher predict without mirroring")
    command.add_argument("--skip-bad", action="store_true", help="leave out cases that cannot be read, and say which")
    command.add_argument("--onnx", action="store_true", help="also write OUT/onnx, for nnunet_kd predict")
    command.add_argument("--trust", action="store_true", help="allow code in the files of the model to run")
    command.add_argument(
        "-np", metavar="N", type=int, help="processes that preprocess (default: one per core, up to 8)"
    )
    command.add_argument(
        "-device", metavar="DEVICE", choices=("cpu", "cuda"), help="cpu or cuda (default: cuda if available)"
    )
    command.add_argument("--prepare", action="store_true", help="write the raw data set and the plans, and stop")
    command.add_argument("--dry-run", action="store_true", help="print the commands and run none of them")
    add_launcher(command, "the teacher's segmentations")
    command.set_defaults(run=run, goes_on="; give the same command to go on")


def run(arguments: argparse.Namespace) -> int:
    """Run the steps that are not done yet; return the exit status."""
    _check(arguments)
    check_launcher(arguments)
    if arguments.launcher == "slurm" and arguments.jobs is None:
        raise ValueError("--launcher slurm needs --jobs, the number of jobs that segment the images")
    from nnunet_kd.cli.device import default_device
    from nnunet_kd.storage.processes import usable_cores
    from nnunet_kd.study.commands import Commands
    from nnunet_kd.workflow.distillation import Distillation, Request, only_one
    from nnunet_kd.workflow.plans import Student

    out = arguments.o.resolve()
    label_map = _label_map(arguments.labels)
    student = Student(arguments.r, arguments.spacing, arguments.channels, label_map)
    schedule = {
        "num_epochs": arguments.epochs,
        "num_iterations_per_epoch": arguments.iterations,
        "num_val_iterations_per_epoch": max(1, arguments.iterations // 5),  # nnU-Net's proportion, 50 to 250
        "seed": arguments.seed,
    }
    request = Request(
        arguments.m,
        None if arguments.f is None else tuple(arguments.f),
        arguments.i,
        arguments.l,
        student,
        arguments.kept_back,
        schedule,
        mirroring=not arguments.disable_tta,
        skip_bad=arguments.skip_bad,
        onnx=arguments.onnx,
        trust=arguments.trust,
        device=arguments.device or default_device(),
        processes=arguments.np or min(8, usable_cores()),
        launcher=launcher_words(arguments),
    )
    made = Distillation(request, out)
    if arguments.dry_run:
        first = [word for word in arguments.words if word != "--dry-run"]
        print(made.script(["nnunet_kd", *first, "--prepare"]))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    commands = Commands(out / "logs")
    with only_one(out):
        if arguments.prepare:
            made.prepare(commands)
            print(f"prepared {made.preprocessed}")
            return 0
        made.run(commands)
        from nnunet_kd.workflow.report import write_distillation_report

        commands.say("comparing student and teacher on the images kept back")
        report = write_distillation_report(made)
    print(f"student {made.student_zip}\nreport  {report}\ndone in {commands.minutes:.1f} minutes")
    print(f"then: nnunet_kd install {quote(str(made.student_zip))}, which prints the command that predicts with it")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("epochs", "iterations"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if not 0 < arguments.kept_back < 1:
        raise ValueError(f"--kept-back is a share between 0 and 1, got {arguments.kept_back:g}")
    if arguments.r < 1:
        raise ValueError(f"-r must be at least 1, got {arguments.r:g}")
    if arguments.np is not None and arguments.np < 1:
        raise ValueError(f"-np must be at least 1, got {arguments.np}")
    check_writable_folder(arguments.o)
    inputs = [path for path in (arguments.i, arguments.l) if path is not None]
    for folder in inputs:
        if lies_in(arguments.o, folder):
            raise ValueError(
                f"cannot write into {arguments.o}: it lies in {folder}, one of the inputs. Give another -o"
            )
    check_kept([*inputs, Path(arguments.m)], [arguments.o], "Give another folder with -o")


def _label_map(path: Path | None) -> dict[str, list[str]] | None:
    """Read the file of ``--labels``."""
    from nnunet_kd.nnunet.reading import read_json

    return None if path is None else read_json(path)
