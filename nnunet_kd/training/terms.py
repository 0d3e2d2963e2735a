"""Distillation terms: what a trainer adds to nnU-Net's loss, and with which numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nnunet_kd.planning import check_keys
from nnunet_kd.teachers.stages import EncoderStages, match_stages
from nnunet_kd.training.ramp import Ramp, read_ramp


@dataclass(frozen=True)
class StageTerm:
    """A loss summed over the encoder stages of student and teacher (DCD, eq. 8); declared in a trainer.

    Attributes:
        name: Its name in the log.
        loss: Class with ``forward(student, teacher, projection)`` for one stage and
            ``projection(student_channels, teacher_channels, dim)`` for the adapter of one stage.
        weight: Factor of the sum in the total loss (lambda).
        ramp: See :func:`nnunet_kd.training.ramp.read_ramp`.
        options: Keywords of ``loss`` that differ from its defaults.
    """

    name: str
    loss: Callable[..., nn.Module]
    weight: float
    ramp: Sequence[float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def configured(self, method: Mapping[str, Any], num_epochs: int) -> ConfiguredTerm:
        """The term with the numbers of a plan's ``nnunet_kd.method`` instead of the declared ones.

        Raises:
            ValueError: For a key that is neither the term's nor a keyword of the loss, or a value neither takes.
        """
        valid = ["weight", "ramp", *inspect.signature(self.loss).parameters]
        check_keys(method, valid, "nnunet_kd.method")
        weight = method.get("weight", self.weight)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"nnunet_kd.method.weight must be a number above 0, got {weight!r}")
        options = {**self.options, **{key: value for key, value in method.items() if key not in ("weight", "ramp")}}
        try:
            loss = self.loss(**options)
            ramp = read_ramp(method.get("ramp", self.ramp), num_epochs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"nnunet_kd.method: {error}") from error
        return ConfiguredTerm(self.name, loss, float(weight), ramp)


@dataclass(frozen=True)
class ConfiguredTerm:
    """A term as one training uses it."""

    name: str
    loss: Any
    weight: float
    ramp: Ramp | None

    def weight_at(self, epoch: int) -> float:
        """Weight in ``epoch``, counted from 0."""
        return self.weight * (1.0 if self.ramp is None else self.ramp(epoch))

    def adapters(self, student: EncoderStages, teacher: EncoderStages) -> nn.ModuleList:
        """One projection a matched stage, in the order of :func:`match_stages`."""
        return nn.ModuleList(
            self.loss.projection(student.widths[i], teacher.widths[j], student.dim)
            for i, j in match_stages(student, teacher)
        )

    def __call__(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        stages: Sequence[tuple[int, int]],
        adapters: nn.ModuleList,
    ) -> Tensor:
        """Unweighted sum over the matched stages."""
        losses = [
            self.loss(student[i], teacher[j], projection) for (i, j), projection in zip(stages, adapters, strict=True)
        ]
        total: Tensor = sum(losses[1:], losses[0])
        return total

    def __str__(self) -> str:
        ramp = "" if self.ramp is None else f", ramp from epoch {self.ramp.start:g} over {self.ramp.length:g}"
        return f"{self.name}: weight {self.weight:g}{ramp}, {self.loss}"
