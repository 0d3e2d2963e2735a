"""The command ``nnunet_kd``: arguments to one call. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_kd import __version__
from nnunet_kd.cli import compare, dataset, demo, doctor, evaluate, export, plan, predict, soft_labels
from nnunet_kd.storage.writing import is_full

_ORDER = """in the order of the work:
  nnunet_kd dataset BraTS2024GLI FOLDER                        a data set of the papers; or put yours into nnUNet_raw
  nnUNetv2_plan_and_preprocess -d 501 -c 3d_fullres
  nnUNetv2_train 501 3d_fullres 0                              the teacher
  nnunet_kd doctor -d 501                                      is all in place for a student?
  nnUNetv2_train 501 3d_fullres 0 -tr nnUNetTrainerKD          a student of a quarter of the width
  nnUNetv2_predict -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerKD -i IN -o OUT
  nnunet_kd export nnunet -d 501 -tr nnUNetTrainerKD -o student.zip
"""


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="nnunet_kd",
        description="Knowledge distillation for stock nnU-Net v2. Training and prediction are nnU-Net's own commands.",
        epilog=_ORDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"nnunet_kd {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (dataset, plan, doctor, soft_labels, compare, evaluate, export, predict, demo):
        command.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. What a person can get wrong is one line on standard error."""
    chosen = parser().parse_args(arguments)
    try:
        status: int = chosen.run(chosen)
        return status
    except OSError as error:
        print(f"nnunet_kd: {_in_words(error)}", file=sys.stderr)
        return 1
    except (ValueError, NotImplementedError, RuntimeError, ImportError) as error:
        print(f"nnunet_kd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnunet_kd: stopped", file=sys.stderr)
        return 130


def _in_words(error: OSError) -> str:
    """Put an error into words: ours is a sentence already, the system's has a number and mostly a file."""
    if error.errno is None:
        return str(error)
    named = error.filename2 or error.filename
    if is_full(error, Path()):
        return f"cannot write{f' {named}' if named else ''}: the disk is full"
    reason = (error.strerror or str(error)).lower()
    return f"cannot use {named}: {reason}" if named else reason
