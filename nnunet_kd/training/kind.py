"""What a trainer class declares, for code that needs no more of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nnunet_kd.distillation.methods import Method


class TrainerKind(Protocol):
    """A trainer class that distils.

    Attributes:
        reduction: Where the plans name no student, its widths are the teacher's, divided by this.
        terms: Terms beside nnU-Net's own loss, which plans can add to or replace; ``None``: none, whatever they say.
        recipe: Settings of the training that belong to these terms: not used where the plans list others instead.
        network_of_plans: Key of :data:`nnunet_kd.nnunet.planning.NETWORKS`, for plans that name no student; ``None``
            keeps the network of the plans.
        method: Dataclass of ``nnunet_kd.method``, for a trainer that has settings of its own instead of terms.
    """

    __name__: str
    reduction: float
    terms: tuple[Method, ...] | None
    recipe: Mapping[str, Any]
    network_of_plans: str | None
    method: type | None

    @property
    def build_network_architecture(self) -> Any:
        """nnU-Net's static method that builds the plain student."""
