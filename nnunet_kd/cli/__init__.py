"""The command ``nnunet_kd``. A command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from nnunet_kd import __version__
from nnunet_kd.cli import compare, dataset, demo, distill, doctor, evaluate, export, plan, predict, soft_labels
from nnunet_kd.runtime.command import in_words

_DESCRIPTION = """\
Knowledge distillation for stock nnU-Net v2. You train and predict with nnU-Net's own commands; the commands below
prepare data and plans, check an experiment, compare methods and export students. Every one of them explains itself
with examples: nnunet_kd COMMAND --help
"""

_ORDER = """from the data to a student, step by step:
  nnunet_kd dataset BraTS2024GLI FOLDER                   convert a data set of the papers, or add yours to nnUNet_raw
  nnUNetv2_plan_and_preprocess -d 501 -c 3d_fullres       plan and preprocess it
  nnUNetv2_train 501 3d_fullres 0                         train the teacher
  nnunet_kd doctor -d 501                                 check that everything is ready for a student
  nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerKD     train a student with a quarter of the teacher's width
  nnUNetv2_predict -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerKD -i IN -o OUT      segment images with it
  nnunet_kd export nnunet -d 501 -tr nnUNetTrainerKD -o student.zip                share it with users of stock nnU-Net
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="nnunet_kd",
        description=_DESCRIPTION,
        epilog=_ORDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"nnunet_kd {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (dataset, plan, doctor, distill, soft_labels, compare, evaluate, export, predict, demo):
        command.add_parser(commands)
    return top


def _silence() -> None:
    """Hide what libraries say to their own developers, here and in processes that are spawned, unless a user asked.

    PyTorch, for example, warns while it is imported that it uses an interface of its own that it has deprecated. A
    user who sets -W or PYTHONWARNINGS gets what they ask for.
    """
    if not sys.warnoptions:
        sys.warnoptions.append("ignore::FutureWarning")  # multiprocessing passes these options on
    if sys.warnoptions == ["ignore::FutureWarning"]:
        warnings.simplefilter("ignore", FutureWarning)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. A user's mistake becomes one line on standard error."""
    _silence()
    words = sys.argv[1:] if arguments is None else arguments
    chosen = parser().parse_args(words, argparse.Namespace(words=words))
    try:
        status: int = chosen.run(chosen)
        return status
    except OSError as error:
        print(f"nnunet_kd: {in_words(error)}", file=sys.stderr)
        return 1
    except (ValueError, NotImplementedError, RuntimeError, ImportError) as error:
        print(f"nnunet_kd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"nnunet_kd: stopped{getattr(chosen, 'goes_on', '')}", file=sys.stderr)
        return 130
