"""The base class of all distillation terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_kd.distillation.ramp import read_ramp
from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.losses.features import check_number
from nnunet_kd.networks.stages import EncoderStages


class Term(ABC):
    """One term of a training's loss, with a weight that can ramp up.

    A plan sets the keyword arguments of the constructor and of the loss by name.

    Args:
        name: The term's name in plans and in the log.
        loss: The loss object.
        num_epochs: The number of epochs of the training, to which fractions refer.
        weight: The factor in the total loss.
        ramp: The growth of the weight over the epochs, see :func:`nnunet_kd.distillation.ramp.read_ramp`.

    Raises:
        ValueError: If a setting is out of range.
    """

    allows_zero_weight: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    reads_encoder: ClassVar[bool] = False  # features of the student's encoder and, with a teacher, of the teacher's
    reads_decoder: ClassVar[bool] = False  # features of the student's decoder
    reads_logits: ClassVar[bool] = False  # logits of the teacher
    recorded: ClassVar[tuple[str, ...]] = ("convex",)  # attributes listed in a training's record

    convex = False  # nnU-Net's own loss gets 1 - weight
    stages: tuple[int, ...] | None = None  # stages of the student's encoder; None for all

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
        """Return the unweighted loss of one step."""

    def taught_stages(self, step: TrainStep) -> Collection[int]:
        """Return the stages of the teacher's encoder that the term reads in a step."""
        return ()

    def weight_at(self, epoch: int) -> float:
        """Return the weight in ``epoch``, counted from 0."""
        return self.weight * (1.0 if self.ramp is None else self.ramp(epoch))

    def adapters(
        self,
        student: EncoderStages | None,
        teacher: EncoderStages | None,
        decoder: int = 0,
        num_classes: int | None = None,
    ) -> nn.Module:
        """Build the modules that train with the student for this term.

        Args:
            student: The student's encoder stages, if the term reads encoder features.
            teacher: The teacher's encoder stages, if the term needs a teacher and reads encoder features.
            decoder: The number of the student's decoder stages, if the term reads decoder features.
            num_classes: The number of classes of the targets, for terms that remember them.
        """
        return nn.ModuleList()

    def check_pairs(self, matched: Iterable[tuple[int, int]]) -> None:  # noqa: B027  most terms ask for none
        """Check that the term can use the matched pairs (student stage, teacher stage).

        Raises:
            ValueError: If the term asks for a stage that is not among them.
        """

    def check_batch(self, cases: int) -> None:
        """Check that the term can use batches of this size, all processes together.

        Raises:
            ValueError: If the loss compares cases, and there is only one.
        """
        if cases < 2 and getattr(self.loss, "compares_cases", False) and not getattr(self.loss, "memory", 0):
            raise ValueError(
                f"{self.name} compares the cases of a batch, and batch_size of the plans is {cases}: "
                'set it to 2 or more, or give the term a "memory" of recent cases'
            )

    # ---- Tuning on the teacher, before anything is distilled

    @property
    def tuning_name(self) -> str | None:
        """The name of the tuning loss in the log; ``None`` if the term tunes nothing."""
        return None

    def tunes_at(self, epoch: int) -> bool:
        """Return whether the term tunes in ``epoch``."""
        return False

    def tune(self, step: TrainStep, adapters: Any) -> Tensor:
        """Return the tuning loss."""
        raise NotImplementedError

    def frozen(self, epoch: int, adapters: Any) -> Iterable[nn.Parameter]:
        """Return the adapters' parameters that must not change in ``epoch``."""
        return ()

    # ---- The training's record

    @property
    def options(self) -> str:
        """The options of the term that :meth:`__str__` does not show, for the record."""
        return ", ".join([self.name, *(f"{name} {getattr(self, name)}" for name in self.recorded)])

    def __repr__(self) -> str:  # appears in nnU-Net's debug.json
        return f"<{self}>"

    def __str__(self) -> str:
        ramp = ""
        if self.ramp is not None:
            shape = "" if self.ramp.shape == "cosine" else f"{self.ramp.shape} "
            ramp = f", {shape}ramp from epoch {self.ramp.start:g} over {self.ramp.length:g}"
        return f"{self.name}: weight {self.weight:g}{ramp}, {self.loss}"


def is_frozen(projection: Any) -> bool:
    """Check the option ``projection`` of a term, and return whether it freezes phi.

    Raises:
        ValueError: If the option is neither ``"learned"`` nor ``"frozen"``.
    """
    if projection not in ("learned", "frozen"):
        raise ValueError(f"projection must be 'learned' or 'frozen', got {projection!r}")
    return bool(projection == "frozen")


def read_convex(convex: Any, weight: float) -> bool:
    """Check the option ``convex`` of a term.

    Raises:
        ValueError: If the option is not a boolean, or if a convex term's weight is above 1.
    """
    if not isinstance(convex, bool):
        raise ValueError(f"convex must be true or false, got {convex!r}")
    if convex and weight > 1:
        raise ValueError(f"the weight of a convex term must be at most 1, got {weight:g}")
    return convex
