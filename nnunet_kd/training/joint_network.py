"""Let nnU-Net build a student together with its adapters as the network that it compiles, optimizes and wraps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

from nnunet_kd.networks.memory_layout import in_fast_layout


@contextmanager
def building_joint_network(trainer: Any) -> Iterator[None]:
    """Make nnU-Net build, compile and wrap the student with its adapters instead of the plain network.

    Args:
        trainer: The trainer whose network nnU-Net builds in the block. Its class builds the plain student, as it does
            for prediction.
    """
    build_student = type(trainer).build_network_architecture

    @wraps(build_student)  # nnU-Net inspects the signature
    def build(*arguments: Any, **options: Any) -> nn.Module:
        student = in_fast_layout(build_student(*arguments, **options), trainer.device)
        distiller = trainer.distiller
        joint: nn.Module = trainer.joint(
            student, distiller.adapters(student), distiller.reads_encoder, distiller.reads_decoder
        )
        return joint

    trainer.build_network_architecture = build
    try:
        yield
    finally:
        del trainer.build_network_architecture
