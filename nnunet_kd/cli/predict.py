"""``nnunet_kd predict``: segment images with an ONNX model, without PyTorch and nnU-Net."""

from __future__ import annotations

import argparse
from typing import Any

from nnunet_kd.runtime.command import add_arguments, description, run


def add_parser(commands: Any) -> None:
    """Add the command ``predict`` and its arguments."""
    command = commands.add_parser(
        "predict",
        help="segment images with an ONNX model",
        description=description("nnunet_kd predict"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(command)
    command.set_defaults(run=run)
