"""``nnunet_kd doctor``: check the installation, and whether an experiment is ready for its student."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_kd.cli.doctor import installation
from nnunet_kd.cli.doctor.experiment import ExperimentChecks
from nnunet_kd.cli.doctor.references import references
from nnunet_kd.cli.doctor.stop import StopError

_DESCRIPTION = """\
Check the installation and, with -d, one experiment: its plans, preprocessed data, student and teacher. Each line
reports one check. A line that begins with FAIL says what is wrong and, after "Fix:", what to do about it. The last line
counts the problems; the exit status is 1 if there are any.

  nnunet_kd doctor
      check packages, device, nnU-Net's folders and trainers
  nnunet_kd doctor -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerKD
      check as well that this student can be trained
  nnunet_kd doctor -d 501 --cases
      also read every preprocessed case and look for values that are not finite and labels that are not declared
"""


def add_parser(commands: Any) -> None:
    """Add the command ``doctor`` and its arguments."""
    command = commands.add_parser(
        "doctor",
        help="check the installation and an experiment, and say how to fix it",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "-d", metavar="ID", help="number or name of the data set (default: check the installation only)"
    )
    command.add_argument(
        "-c", metavar="CONFIG", default="3d_fullres", help="nnU-Net configuration (default: 3d_fullres)"
    )
    command.add_argument("-f", metavar="FOLD", default="0", help="fold of the student, a number or all (default: 0)")
    command.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="name of the student's plans (default: nnUNetPlans)"
    )
    command.add_argument(
        "-tr",
        metavar="TRAINER",
        help="trainer of the student (default: nnUNetTrainerKD, or the one nnunet_kd plan --network prints)",
    )
    command.add_argument("--trust", action="store_true", help="allow the plans to name networks of any package")
    command.add_argument("--cases", action="store_true", help="read and check every preprocessed case")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the checks and print their findings; return 1 if there is a problem, else 0."""
    if arguments.f != "all" and not arguments.f.isdecimal():
        raise ValueError(f"a fold is a number or all, got {arguments.f!r}")
    checks: list[Callable[[], str | None]] = [
        installation.packages,
        installation.device,
        installation.processes,
        installation.folders,
        installation.trainers,
    ]
    experiment = ExperimentChecks(arguments)
    if arguments.d is not None:
        checks += [experiment.read_plans, experiment.description, experiment.preprocessed]
        checks += [experiment.cases] if arguments.cases else []
        checks += [experiment.find_trainer, experiment.student, experiment.first_stage]
        checks += [partial(references, experiment), experiment.teacher]
    wrong = 0
    for check in checks:
        try:
            found = check()
            if found is not None:
                print(f"ok    {found}")
        except (ValueError, OSError, NotImplementedError, RuntimeError, ImportError) as error:
            wrong += 1
            print(f"FAIL  {error}")
            if isinstance(error, StopError):
                break
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
            wrong += 1
            print(f"FAIL  {_of_plans(error, experiment.path)}")
    print("no problems found" if not wrong else f"{wrong} problem{'s' if wrong > 1 else ''} found")
    return 1 if wrong else 0


def _of_plans(error: Exception, path: Path) -> str:
    """Say in one sentence why nnU-Net cannot use plans that it can read."""
    from nnunet_kd.nnunet.reading import plans_errors

    try:
        with plans_errors(path):
            raise error
    except ValueError as said:
        return str(said)
