"""The attributes that a trainer class declares, as a protocol for code that needs only these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nnunet_kd.distillation.methods import Method


class TrainerKind(Protocol):
    """The protocol of a trainer class that distils.

    Attributes:
        reduction: The divisor of the teacher's widths for a student that the plans do not name.
        terms: The terms in addition to nnU-Net's loss, which plans can extend or replace; ``None`` if the trainer has
            none whatever the plans say.
        recipe: Training settings that belong to these terms. They do not apply if the plans list other terms.
        starts_from_named_teacher: Whether the recipe's initial weights need a teacher that the plans name. Without one
            they are random. If not, the recipe looks for nnU-Net's usual teacher.
        network_of_plans: A key of :data:`nnunet_kd.nnunet.networks_of_plans.NETWORKS`, the network of a student that
            the plans do not name; ``None`` keeps the network of the plans.
        method: The dataclass of ``nnunet_kd.method``, if the trainer has its own settings instead of terms.
    """

    __name__: str
    reduction: float
    terms: tuple[Method, ...] | None
    recipe: Mapping[str, Any]
    starts_from_named_teacher: bool
    network_of_plans: str | None
    method: type | None

    @property
    def build_network_architecture(self) -> Any:
        """The static method of nnU-Net that builds the plain student."""
