"""The command ``nnunet_kd``: arguments to one call. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_kd import __version__
from nnunet_kd.cli import compare, dataset, demo, doctor, evaluate, export, plan, predict, soft_labels
from nnunet_kd.writing import is_full


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="nnunet_kd",
        description="Knowledge distillation for stock nnU-Net v2. Training and prediction are nnU-Net's own commands: "
        "nnUNetv2_train ... -tr nnUNetTrainerDCD, nnUNetv2_predict.",
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
        named = error.filename2 or error.filename
        full = error.errno is not None and is_full(error, Path())
        text = f"cannot write{f' {named}' if named else ''}: the disk is full" if full else error
        print(f"nnunet_kd: {text}", file=sys.stderr)
        return 1
    except (ValueError, NotImplementedError, RuntimeError, ImportError) as error:
        print(f"nnunet_kd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nnunet_kd: stopped", file=sys.stderr)
        return 130
