"""What all terms have in common: a loss, a weight that may ramp up, and what they read of both networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_kd.distillation.ramp import read_ramp
from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.losses.features import check_number
from nnunet_kd.networks.stages import EncoderStages


class Term(ABC):
    """One term of a training's loss.

    A plan sets the keyword arguments of the constructor, and those of the loss, by their names.

    Args:
        name: The term's name in plans and in the log.
        loss: The loss, built.
        num_epochs: Length of the training, of which fractions are taken.
        weight: Factor in the total loss.
        ramp: How the weight grows over the epochs, see :func:`nnunet_kd.distillation.ramp.read_ramp`.

    Raises:
        ValueError: For a number that means nothing.
    """

    allows_zero_weight: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    reads_encoder: ClassVar[bool] = False  # features of the student's encoder and, with a teacher, of the teacher's
    reads_decoder: ClassVar[bool] = False  # features of the student's decoder
    reads_logits: ClassVar[bool] = False  # logits of the teacher
    recorded: ClassVar[tuple[str, ...]] = ("convex",)  # attributes that a training's record lists

    convex = False  # nnU-Net's own loss gets 1 - weight
    stages: tuple[int, ...] | None = None  # of the student's encoder; None stands for all

    def __init__(
        self, name: str, loss: Any, num_epochs: int, *, weight: float, ramp: Sequence[float] | None = None
    ) -> None:
        check_number("weight", weight, positive=not self.allows_zero_weight)
        self.name = name
        self.loss = loss
        self.weight = float(weight)
        self.ramp = read_ramp(ramp, num_epochs)

    @abstractmethod
    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the unweighted value for one step."""

    def weight_at(self, epoch: int) -> float:
        """Return the weight in ``epoch``, counted from 0."""
        return self.weight * (1.0 if self.ramp is None else self.ramp(epoch))

    def adapters(self, student: EncoderStages | None, teacher: EncoderStages | None, decoder: int = 0) -> nn.Module:
        """Build what trains with the student for this term.

        Args:
            student: The student's encoder stages, where the term reads encoder features.
            teacher: The teacher's, where the term needs a teacher and reads encoder features.
            decoder: How many decoder stages the student has, where the term reads decoder features.
        """
        return nn.ModuleList()

    def check_pairs(self, matched: Iterable[tuple[int, int]]) -> None:  # noqa: B027  most terms ask for none
        """Check that the term can use these pairs (student stage, teacher stage).

        Raises:
            ValueError: If the term asks for a stage that is not among them.
        """

    # ---- What a term learns from the teacher alone, before it distils anything

    @property
    def tuning_name(self) -> str | None:
        """Name of the tuning loss in the log; ``None`` if the term tunes nothing."""
        return None

    def tunes_at(self, epoch: int) -> bool:
        """Return whether the term tunes in ``epoch``."""
        return False

    def tune(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the tuning loss."""
        raise NotImplementedError

    def frozen(self, epoch: int, adapters: Any) -> Iterable[nn.Parameter]:
        """Return the adapters' parameters that must not move in ``epoch``."""
        return ()

    # ---- What a training's record says

    @property
    def options(self) -> str:
        """Whatever the value depends on beside what :meth:`__str__` says."""
        return ", ".join([self.name, *(f"{name} {getattr(self, name)}" for name in self.recorded)])

    def __repr__(self) -> str:  # nnU-Net writes it into debug.json
        return f"<{self}>"

    def __str__(self) -> str:
        ramp = "" if self.ramp is None else f", ramp from epoch {self.ramp.start:g} over {self.ramp.length:g}"
        return f"{self.name}: weight {self.weight:g}{ramp}, {self.loss}"


def read_convex(convex: Any, weight: float) -> bool:
    """Check the option ``convex`` of a term.

    Raises:
        ValueError: For anything but true or false, and for a convex term whose weight is above 1.
    """
    if not isinstance(convex, bool):
        raise ValueError(f"convex must be true or false, got {convex!r}")
    if convex and weight > 1:
        raise ValueError(f"a convex term's weight is at most 1, got {weight:g}")
    return convex
