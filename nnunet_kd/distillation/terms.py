"""Distillation terms: what is added to nnU-Net's loss, where in the networks, and with which numbers.

A :class:`Term` is declared once (:mod:`nnunet_kd.distillation.methods`); the plan's ``nnunet_kd.method`` may change its
numbers; :meth:`Term.build` makes the :class:`ActiveTerm` of one training.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunet_kd.distillation.ramp import Ramp, read_ramp
from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.losses.features import check_number
from nnunet_kd.networks.stages import EncoderStages, match_stages
from nnunet_kd.nnunet.settings import check_keys


@dataclass(frozen=True)
class Term(ABC):
    """Declaration of a term.

    Attributes:
        name: Its name in plans and in the log.
        loss: Class of the loss.
        weight: Factor in the total loss.
        ramp: See :func:`nnunet_kd.distillation.ramp.read_ramp`.
        options: Keywords of ``loss`` that differ from its defaults.
    """

    name: str
    loss: Callable[..., Any]
    weight: float
    ramp: Sequence[float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    may_weigh_nothing: ClassVar[bool] = False

    def changed(self, numbers: Mapping[str, Any], where: str) -> Term:
        """The term with numbers of a plan instead of its own: its own keys and the keywords of its loss.

        Raises:
            ValueError: For a key that is neither.
        """
        own = [entry.name for entry in fields(self) if entry.name not in ("name", "loss", "options")]
        check_keys(numbers, [*own, *inspect.signature(self.loss).parameters], where)
        options = {key: value for key, value in numbers.items() if key not in own}
        return replace(
            self,
            options={**self.options, **options},
            **{key: value for key, value in numbers.items() if key in own},
        )

    def build(self, num_epochs: int, where: str) -> ActiveTerm:
        """The term as one training uses it.

        Raises:
            ValueError: Naming ``where`` and what is wrong with a number.
        """
        try:
            check_number("weight", self.weight, positive=not self.may_weigh_nothing)
            return self._build(self.loss(**self.options), num_epochs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    @abstractmethod
    def _build(self, loss: Any, num_epochs: int) -> ActiveTerm: ...


@dataclass(frozen=True)
class StageTerm(Term):
    """A loss on features, summed over encoder stages of student and teacher on the same grid (DCD, eq. 8).

    Its class has ``forward(student, teacher, projection)`` for one stage and ``projection(student_channels,
    teacher_channels, dim)`` for the adapter of one; with ``needs_classes``, ``forward`` gets ``classes`` and
    ``num_classes`` too.

    Attributes:
        stages: Numbers of the student's stages, 0 the highest resolution; ``None``: all the teacher has as well.
    """

    stages: Sequence[int] | None = None

    def _build(self, loss: Any, num_epochs: int) -> ActiveTerm:
        ramp = read_ramp(self.ramp, num_epochs)
        return ActiveStageTerm(self.name, loss, float(self.weight), ramp, stages=_read_stages(self.stages))


@dataclass(frozen=True)
class PromptTerm(StageTerm):
    """A :class:`StageTerm` whose adapters hold prompts, tuned on the teacher before anything is distilled.

    Attributes:
        prompt_epochs: Length of the tuning: a whole number of epochs, or a fraction of the training (0.0 to 1.0).
            The ramp begins after it.
    """

    prompt_epochs: float = 0.05

    def _build(self, loss: Any, num_epochs: int) -> ActiveTerm:
        check_number("prompt_epochs", self.prompt_epochs)
        epochs = self.prompt_epochs
        if isinstance(epochs, float):
            if epochs > 1:
                raise ValueError(
                    "prompt_epochs is a whole number of epochs, or a fraction of the training (0.0 to 1.0), "
                    f"got {epochs}"
                )
            epochs = math.ceil(epochs * num_epochs)
        if epochs >= num_epochs:
            raise ValueError(f"prompt_epochs {self.prompt_epochs:g} leaves none of {num_epochs} epochs for the student")
        ramp = read_ramp(self.ramp, num_epochs - int(epochs))
        stages = _read_stages(self.stages)
        return ActivePromptTerm(self.name, loss, float(self.weight), ramp, stages=stages, prompt_epochs=int(epochs))


@dataclass(frozen=True)
class LogitsTerm(Term):
    """A loss on logits; its class has ``forward(student, teacher, regions, valid)`` for one resolution.

    Attributes:
        scales: ``"full"``: the network's output. ``"all"``: every resolution of deep supervision both networks are
            trained at, weighted as nnU-Net weights them: half of the finer one's, the coarsest left out, which nnU-Net
            gives the weight 0 and so never trains.
        convex: nnU-Net's own loss gets ``1 - weight``.
    """

    scales: str = "full"
    convex: bool = False

    def _build(self, loss: Any, num_epochs: int) -> ActiveTerm:
        ramp = read_ramp(self.ramp, num_epochs)
        if self.scales not in ("all", "full"):
            raise ValueError(f"scales must be 'all' or 'full', got {self.scales!r}")
        convex = _read_convex(self.convex, self.weight)
        return ActiveLogitsTerm(
            self.name, loss, float(self.weight), ramp, convex=convex, all_scales=self.scales == "all"
        )


@dataclass(frozen=True)
class SelfTerm(Term):
    """A loss on the student's own encoder and decoder levels; there is no teacher (DSVM-UNet, eq. 2 and 3).

    Its class has ``forward(encoder, decoder, adapters)``, finest level first, and ``adapters(encoder_widths,
    decoder_widths, dim)``.
    """

    def _build(self, loss: Any, num_epochs: int) -> ActiveTerm:
        return ActiveSelfTerm(self.name, loss, float(self.weight), read_ramp(self.ramp, num_epochs))


@dataclass(frozen=True)
class SoftLabelTerm(Term):
    """A loss between the student's logits and stored ones (SAM-DRA-UNet, eq. 17); there is no teacher at training.

    With the weight 0 it is not computed and no soft labels are read: the "hard targets only" of table 3.

    Its class has ``forward(student, teacher, regions, valid)``, as that of a :class:`LogitsTerm`.

    Attributes:
        convex: nnU-Net's own loss gets ``1 - weight``.
        store: Name of the soft labels (:mod:`nnunet_kd.teachers.soft_labels`); ``None``: the only ones there are.
        hard_loss: What the labels themselves train with: ``"dice_ce"``, nnU-Net's own, or ``"ce"`` alone, as eq. 16.
    """

    convex: bool = True
    store: str | None = None
    hard_loss: str = "dice_ce"

    may_weigh_nothing: ClassVar[bool] = True

    def _build(self, loss: Any, num_epochs: int) -> ActiveTerm:
        if self.store is not None and not isinstance(self.store, str):
            raise ValueError(f"store must be null or a name, got {self.store!r}")
        if self.hard_loss not in ("dice_ce", "ce"):
            raise ValueError(f"hard_loss must be 'dice_ce' or 'ce', got {self.hard_loss!r}")
        return ActiveSoftLabelTerm(
            self.name,
            loss,
            float(self.weight),
            read_ramp(self.ramp, num_epochs),
            convex=_read_convex(self.convex, self.weight),
            store=self.store,
            hard_loss=self.hard_loss,
        )


def _read_convex(convex: Any, weight: float) -> bool:
    if not isinstance(convex, bool):
        raise ValueError(f"convex must be true or false, got {convex!r}")
    if convex and weight > 1:
        raise ValueError(f"a convex term's weight is at most 1, got {weight:g}")
    return convex


def _read_stages(stages: Any) -> tuple[int, ...] | None:
    if stages is None:
        return None
    listed = isinstance(stages, list | tuple) and len(stages) > 0
    if not listed or any(isinstance(stage, bool) or not isinstance(stage, int) or stage < 0 for stage in stages):
        raise ValueError(f"stages must be null or a list of stage numbers from 0, got {stages!r}")
    return tuple(sorted(set(stages)))


@dataclass(frozen=True)
class ActiveTerm(ABC):
    """A term as one training uses it.

    What it reads decides what is computed: encoder ``features`` of the student and, where it needs one, of the
    teacher; the student's decoder ``levels``; ``logits`` of the teacher.
    """

    name: str
    loss: Any
    weight: float
    ramp: Ramp | None
    convex: bool = False

    needs_teacher: ClassVar[bool] = True
    reads_features: ClassVar[bool] = False
    reads_levels: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    def weight_at(self, epoch: int) -> float:
        """Weight in ``epoch``, counted from 0."""
        return self.weight * (1.0 if self.ramp is None else self.ramp(epoch))

    def tunes_at(self, epoch: int) -> bool:
        """Whether ``epoch`` belongs to what the term has to learn from the teacher alone."""
        return False

    def tune(self, step: TrainStep, adapters: Any) -> Tensor:
        """The loss of that."""
        raise NotImplementedError

    @property
    def tuning_name(self) -> str | None:
        """Name of that loss in the log; ``None`` where there is nothing to learn."""
        return None

    def frozen(self, epoch: int, adapters: Any) -> Iterable[nn.Parameter]:
        """Parameters of the adapters that must stay as they are in ``epoch``."""
        return ()

    def adapters(self, student: EncoderStages | None, teacher: EncoderStages | None, levels: int = 0) -> nn.Module:
        """What trains with the student for this term.

        Args:
            student: Where the term reads features.
            teacher: Where it needs one, and reads its features.
            levels: How many decoder levels the student has, where the term reads them.
        """
        return nn.ModuleList()

    @property
    def options(self) -> str:
        """What the term depends on beside what its name for the log says."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        said = {entry.name for entry in fields(ActiveTerm)} - {"convex"}
        return ", ".join([self.name, *(f"{key} {value}" for key, value in own.items() if key not in said)])

    @abstractmethod
    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """The unweighted value."""

    def __str__(self) -> str:
        ramp = "" if self.ramp is None else f", ramp from epoch {self.ramp.start:g} over {self.ramp.length:g}"
        return f"{self.name}: weight {self.weight:g}{ramp}, {self.loss}"


@dataclass(frozen=True)
class ActiveStageTerm(ActiveTerm):
    """Of a :class:`StageTerm`."""

    stages: tuple[int, ...] | None = None

    reads_features: ClassVar[bool] = True

    def pairs(self, matched: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Of the pairs on the same grid, those that are distilled.

        Raises:
            ValueError: For a stage that is asked for and not among them.
        """
        pairs = list(matched)
        if self.stages is None:
            return pairs
        available = [student for student, _ in pairs]
        for stage in self.stages:
            if stage not in available:
                raise ValueError(f"{self.name}: stage {stage} cannot be distilled, only {available}")
        return [pair for pair in pairs if pair[0] in self.stages]

    def adapters(self, student: EncoderStages | None, teacher: EncoderStages | None, levels: int = 0) -> nn.Module:
        """One projection a pair of stages."""
        assert student is not None and teacher is not None
        return nn.ModuleList(
            self.loss.projection(student.widths[i], teacher.widths[j], student.dim)
            for i, j in self.pairs(match_stages(student, teacher))
        )

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Sum over the stages."""
        options: dict[str, Any] = {}
        if getattr(self.loss, "needs_classes", False):
            options = {"classes": step.labels.classes(step.targets[0]), "num_classes": step.labels.num_classes}
        losses = [
            self.loss(step.student_features[i], step.teacher_features[j], projection, **options)
            for (i, j), projection in zip(self.pairs(step.stages), adapters, strict=True)
        ]
        total: Tensor = sum(losses[1:], losses[0])
        return total


@dataclass(frozen=True)
class ActivePromptTerm(ActiveStageTerm):
    """Of a :class:`PromptTerm`."""

    prompt_epochs: int = 1

    def weight_at(self, epoch: int) -> float:
        """0 while the prompts are tuned, from whose end the ramp counts."""
        return 0.0 if self.tunes_at(epoch) else super().weight_at(epoch - self.prompt_epochs)

    def tunes_at(self, epoch: int) -> bool:
        """The first epochs."""
        return epoch < self.prompt_epochs

    @property
    def tuning_name(self) -> str:
        """The prompts'."""
        return f"{self.name}_prompts"

    def frozen(self, epoch: int, adapters: Any) -> Iterable[nn.Parameter]:
        """The prompts, once they are tuned."""
        return () if self.tunes_at(epoch) else [p for adapter in adapters for p in adapter.prompts.parameters()]

    def tune(self, step: TrainStep, adapters: Any) -> Tensor:
        """nnU-Net's loss of the teacher, decoding what the prompts keep of its features, and their redundancy."""
        features = list(step.teacher_features)
        redundancies = []
        for (_, j), adapter in zip(self.pairs(step.stages), adapters, strict=True):
            features[j], redundancy = self.loss.tuning(features[j], adapter)
            redundancies.append(redundancy)
        assert step.teacher is not None
        segmentation = step.task_loss(step.teacher.decode(features), step.targets[0])
        total: Tensor = sum(redundancies[1:], redundancies[0])
        return segmentation + total / len(redundancies)

    def __str__(self) -> str:
        return f"{super().__str__()}, prompts tuned for {self.prompt_epochs} epochs"


@dataclass(frozen=True)
class ActiveLogitsTerm(ActiveTerm):
    """Of a :class:`LogitsTerm`."""

    all_scales: bool = False

    reads_logits: ClassVar[bool] = True

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Weighted mean over the resolutions."""
        taught = {logits.shape[2:]: logits for logits in step.teacher_logits}
        count = len(step.student_logits)
        scales = range(max(count - 1, 1)) if self.all_scales else range(1)
        total: Tensor | None = None
        weights = 0.0
        for scale in scales:
            logits = step.student_logits[scale]
            if logits.shape[2:] not in taught:
                continue
            valid = step.labels.valid(step.targets[scale])
            value = self.loss(logits, taught[logits.shape[2:]], regions=step.labels.regions, valid=valid)
            weight = 0.5**scale
            total = weight * value if total is None else total + weight * value
            weights += weight
        assert total is not None, "both networks have the full resolution"
        return total / weights


@dataclass(frozen=True)
class ActiveSelfTerm(ActiveTerm):
    """Of a :class:`SelfTerm`."""

    needs_teacher: ClassVar[bool] = False
    reads_features: ClassVar[bool] = True
    reads_levels: ClassVar[bool] = True

    def adapters(self, student: EncoderStages | None, teacher: EncoderStages | None, levels: int = 0) -> nn.Module:
        """The loss's own; decoder levels are as wide as the encoder's of their resolution."""
        assert student is not None
        adapters: nn.Module = self.loss.adapters(student.widths, student.widths[:levels], student.dim)
        return adapters

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """Of all levels."""
        value: Tensor = self.loss(step.student_features, step.student_levels, adapters)
        return value


@dataclass(frozen=True)
class ActiveSoftLabelTerm(ActiveTerm):
    """Of a :class:`SoftLabelTerm`."""

    store: str | None = None
    hard_loss: str = "dice_ce"

    needs_teacher: ClassVar[bool] = False

    def __call__(self, step: TrainStep, adapters: Any) -> Tensor:
        """At full resolution, where there are soft labels and no voxel is ignored."""
        assert step.soft_labels is not None and step.soft_valid is not None
        valid = step.soft_valid
        annotated = step.labels.valid(step.targets[0])
        if annotated is not None:
            valid = valid & annotated
        value: Tensor = self.loss(step.student_logits[0], step.soft_labels, regions=step.labels.regions, valid=valid)
        return value
