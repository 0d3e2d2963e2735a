"""``nnunet_kd doctor``: what is installed, what nnU-Net can find, whether the teacher is there and fits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_kd.cli.doctor import installation
from nnunet_kd.cli.doctor.experiment import ExperimentChecks
from nnunet_kd.cli.doctor.stop import StopError

_DESCRIPTION = """\
Check the installation and, with -d, one experiment. Every line says what was found; a line that begins with FAIL says
what is wrong and, where that is known, how to fix it. The exit status is 1 if there is one.

  nnunet_kd doctor
  nnunet_kd doctor -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerKD
  nnunet_kd doctor -d 501 --cases       and read every preprocessed case: are all values numbers, all labels known?
"""


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "doctor",
        help="check the installation, the plans and the teacher",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", help="data set, as a number or a name")
    command.add_argument("-c", metavar="CONFIG", default="3d_fullres", help="configuration (default: 3d_fullres)")
    command.add_argument("-f", metavar="FOLD", default="0", help="fold of the student (default: 0)")
    command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    command.add_argument(
        "-tr", metavar="TRAINER", help="default: nnUNetTrainerKD, or what nnunet_kd plan --network names for a network"
    )
    command.add_argument("--trust", action="store_true", help="the plans may name networks of any package")
    command.add_argument("--cases", action="store_true", help="read every preprocessed case")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns 1 if something is wrong."""
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
        checks += [experiment.find_trainer, experiment.student, experiment.first_stage, experiment.teacher]
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
    """Say in one sentence what nnU-Net raises over plans that could be read but not used."""
    from nnunet_kd.nnunet.reading import plans_errors

    try:
        with plans_errors(path):
            raise error
    except ValueError as said:
        return str(said)
