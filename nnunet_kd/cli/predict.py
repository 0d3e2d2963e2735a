"""``nnunet_kd predict``: segment images with an ONNX model, without PyTorch and nnU-Net."""

from __future__ import annotations

import argparse
from typing import Any

from nnunet_kd.cli.launching import add_launcher, check_launcher, launch
from nnunet_kd.runtime import command as runtime
from nnunet_kd.runtime.command import add_arguments, description

_PARTS = """
  nnunet_kd predict ... --launcher slurm -num_parts 8
      segment eight parts as Slurm jobs; --launcher local --jobs 2 segments two at once on this machine
"""


def add_parser(commands: Any) -> None:
    """Add the command ``predict`` and its arguments."""
    command = commands.add_parser(
        "predict",
        help="segment images with an ONNX model",
        description=description("nnunet_kd predict") + _PARTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(command)
    add_launcher(command, "the parts")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment the images here or in several jobs; return the exit status."""
    check_launcher(arguments)
    if arguments.launcher not in ("local", "slurm"):
        return runtime.run(arguments)
    if not arguments.i.is_dir():
        raise ValueError(f"--launcher sends parts of a folder of images, but {arguments.i} is none")
    return launch(arguments, arguments.o, ("nnunet_kd", *arguments.words), "--continue_prediction")
