"""Displacement preserving relational distillation.

Ding et al., "Displacement Preserving Relational Distillation for Robust Medical Segmentation", MICCAI 2026.
Authors' code: https://github.com/ClinicaAlpha/DPRD-3D-MedSeg
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.features import (
    check_count,
    check_number,
    check_pair,
    in_type_of,
    is_pointwise,
    pointwise_convolution,
    single_precision,
)
from nnunet_kd.losses.masked_pooling import masked_averages, pooled_grid
from nnunet_kd.losses.processes import batches_of_processes, gathered, process_count

WIDEST = 4096
MOST_CASES = 1000
STAGE_WEIGHTS = (0.05, 0.10, 0.10, 0.15, 0.25, 0.35)  # of the authors' six stages, finest first


class RecentCases(nn.Module):
    """The pooled features of the cases of recent batches, newest first.

    Args:
        cases: How many cases are kept.
        student_channels: The width of the student's stage.
        teacher_channels: The width of the teacher's stage.
        cells: The grid of the pooled features.
    """

    student: Tensor
    teacher: Tensor
    count: Tensor

    def __init__(self, cases: int, student_channels: int, teacher_channels: int, cells: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("student", torch.zeros(cases, student_channels, *cells))
        self.register_buffer("teacher", torch.zeros(cases, teacher_channels, *cells))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return copies of the student's and the teacher's features, and which of them are cases, boolean."""
        places = torch.arange(len(self.student), device=self.count.device)
        return self.student.clone(), self.teacher.clone(), places < self.count

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Add the cases of a batch, ``(B, C, *cells)`` each, and forget the oldest."""
        for kept, new in ((self.student, student), (self.teacher, teacher)):
            kept.copy_(torch.cat([new.to(kept.dtype), kept])[: len(kept)])
        self.count.add_(len(student)).clamp_(max=len(self.student))


class DPRDAdapter(nn.Module):
    """The projections of one stage to the common width, and the memory of recent cases if there is one."""

    def __init__(self, student: nn.Module, teacher: nn.Module, recent: RecentCases | None = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.recent = recent


class DPRDLoss(nn.Module):
    r"""The cases of a batch lie in the same directions and distances from each other as in the teacher.

    Both networks' features are averaged over the foreground of the cells of a coarse grid
    (:mod:`nnunet_kd.losses.masked_pooling`) and projected to a common width, which makes one vector v of every case.
    With the displacement :math:`d_{ij} = v_i - v_j` of every pair, i < j, and the mean m of the displacements' norms,

    .. math:: L = \mathrm{mean}_{i<j}\left[\sum_k h\!\left(\frac{d^S_{ijk}}{m^S} - \frac{d^T_{ijk}}{m^T}\right)
        + \lambda\, h\!\left(\frac{\|d^S_{ij}\|}{m^S} - \frac{\|d^T_{ij}\|}{m^T}\right)\right]

    where h is the smooth L1 function. With a single pair the second term is 0, and the first is one minus the cosine of
    the two displacements.

    As in the authors' code, with these differences. Features are averaged before they are projected, which commutes
    (the projections are 1x1(x1) and have no bias) and costs less. The mask is the annotation's foreground brought to
    every stage's grid; under deep supervision the code takes nnU-Net's own targets, which leave out the deepest stage,
    and with it 0.35 of its weights. Ignored voxels are no foreground, and all regions are; the code counts the first as
    foreground and drops the first region. The code makes its projections after the optimizer, so they keep their random
    start: that is the option ``projection: "frozen"`` of the term.

    In a distributed training the pairs are those of the joint batch. Its first step exchanges the batch sizes and waits
    for the device once.

    Args:
        width: The common width.
        masked: Whether to average over the foreground, and not over all voxels.
        length_weight: lambda.
        smoothness: Where h changes from square to absolute value.
        memory: How many cases of recent batches are paired with those of the batch, 0 for none; not in the paper. They
            keep the features they had.
        eps: Added to m.

    Raises:
        ValueError: For an option that is none of these.
    """

    compares_cases = True

    def __init__(
        self,
        width: int = 128,
        masked: bool = True,
        length_weight: float = 0.5,
        smoothness: float = 1.0,
        memory: int = 0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_count("width", width, WIDEST)
        if not isinstance(masked, bool):
            raise ValueError(f"masked must be true or false, got {masked!r}")
        check_number("length_weight", length_weight, positive=False)
        check_number("smoothness", smoothness)
        if isinstance(memory, bool) or memory != 0:
            check_count("memory", memory, MOST_CASES)
        check_number("eps", eps)
        self.width = width
        self.needs_foreground = masked
        self.length_weight = float(length_weight)
        self.smoothness = float(smoothness)
        self.memory = int(memory)
        self.eps = float(eps)
        self._batches: dict[tuple[int, int], list[int]] = {}

    @property
    def needs_grid(self) -> bool:
        """Whether :meth:`projection` must know the grid of the stage."""
        return self.memory > 0

    def projection(
        self, student_channels: int, teacher_channels: int, dim: int, grid: Sequence[int] | None = None
    ) -> DPRDAdapter:
        """The projections of one stage, 1x1(x1) convolutions without bias; none for features of the common width.

        Args:
            student_channels: The width of the student's stage.
            teacher_channels: The width of the teacher's stage.
            dim: The number of spatial axes.
            grid: The size of the features, which only a memory needs.

        Raises:
            ValueError: For a memory of a stage of unknown grid.
        """
        recent = None
        if self.memory:
            if grid is None:
                raise ValueError("a memory needs the grid of the stage's features")
            recent = RecentCases(self.memory, student_channels, teacher_channels, pooled_grid(grid))
        return DPRDAdapter(self._to_width(student_channels, dim), self._to_width(teacher_channels, dim), recent)

    def _to_width(self, channels: int, dim: int) -> nn.Module:
        if channels == self.width:
            return nn.Identity()
        return pointwise_convolution(channels, self.width, dim, bias=False)

    def stage_weights(self, count: int, dim: int) -> list[float]:
        """Return the authors' weights of six stages; for another number of stages, they are interpolated.

        Their sum is 1, finest stage first.
        """
        places = [stage * (len(STAGE_WEIGHTS) - 1) / max(count - 1, 1) for stage in range(count)]
        below = [min(int(place), len(STAGE_WEIGHTS) - 2) for place in places]
        weights = [
            STAGE_WEIGHTS[left] + (place - left) * (STAGE_WEIGHTS[left + 1] - STAGE_WEIGHTS[left])
            for place, left in zip(places, below, strict=True)
        ]
        return [weight / sum(weights) for weight in weights]

    def forward(
        self, student: Tensor, teacher: Tensor, projection: DPRDAdapter, *, foreground: Tensor | None = None
    ) -> Tensor:
        """Loss of one stage, 0 for a single case. The teacher's features receive no gradient.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: From :meth:`projection`.
            foreground: Which voxels are averaged, boolean ``(B, 1, *annotated)``; ``None`` for all. A finer annotation
                is reduced by PyTorch's ``nearest``.

        Shape:
            ``(B, C_S, *spatial)``, ``(B, C_T, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For tensors that do not fit each other.
        """
        check_pair(student, teacher)
        self._check_projection(student, projection.student, "student")
        self._check_projection(teacher, projection.teacher, "teacher")
        _check_foreground(foreground, student)
        dtype = single_precision(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            pooled = masked_averages((student, teacher.detach()), foreground, dtype)
            ours, theirs = self._of_all_processes(*pooled)
            count, known = len(ours), None
            if projection.recent is not None:
                _check_recent(ours, theirs, projection.recent)
                old_ours, old_theirs, known = projection.recent.read()
                projection.recent.add(ours, theirs)
                ours, theirs = torch.cat([ours, old_ours.to(dtype)]), torch.cat([theirs, old_theirs.to(dtype)])
            pairs = _counted(count, known, ours)
            lines = [
                self._relations(in_type_of(one, layer)(one).flatten(2), count, pairs)
                for one, layer in ((ours, projection.student), (theirs, projection.teacher))
            ]
            directions, lengths = (self._distance(*both) for both in zip(*lines, strict=True))
            of_pairs = directions.sum((1, 2)) + self.length_weight * lengths
            return (of_pairs * pairs).sum() / pairs.sum().clamp(min=1)

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return F.smooth_l1_loss(ours, theirs, reduction="none", beta=self.smoothness)

    def _of_all_processes(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled features of all processes, in one exchange."""
        if process_count() == 1:
            return ours, theirs
        key = (len(ours), process_count())
        if key not in self._batches:
            self._batches[key] = batches_of_processes(len(ours), ours.device)
        joint = gathered(torch.cat([ours, theirs], 1), self._batches[key])
        return joint[:, : ours.shape[1]], joint[:, ours.shape[1] :].detach()

    def _relations(self, vectors: Tensor, count: int, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised displacements and their lengths.

        Args:
            vectors: ``(cases, width, cells)``, those of the batch first.
            count: The number of cases of the batch.
            pairs: 1 for every pair that counts, 0 for others.

        Returns:
            ``(pairs, width, cells)`` and ``(pairs,)``.
        """
        displacements = torch.cat([vectors[i] - vectors[i + 1 :] for i in range(count)])
        size = vectors.detach().abs().amax().clamp(min=1e-30)  # it cancels, and keeps squares within the type
        displacements = displacements / size
        if len(vectors) > count:  # those to empty places of the memory become 0: 0 times infinity is none
            displacements = displacements * pairs[:, None, None]
        lengths = torch.linalg.vector_norm(torch.linalg.vector_norm(displacements, dim=2), dim=1)
        divisor = (lengths * pairs).sum() / pairs.sum().clamp(min=1) + self.eps / size
        return displacements / divisor, lengths / divisor

    def _check_projection(self, features: Tensor, layer: nn.Module, whose: str) -> None:
        if is_pointwise(layer):
            made_for = (layer.in_channels, layer.out_channels, layer.weight.ndim - 2)
        else:
            made_for = (self.width, self.width, features.ndim - 2)
        expected = (features.shape[1], self.width, features.ndim - 2)
        if made_for != expected:
            raise ValueError(
                f"the {whose}'s projection goes from {made_for[0]} to {made_for[1]} channels in {made_for[2]}-D, "
                f"expected {expected[0]} to {expected[1]} in {expected[2]}-D"
            )

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, masked={self.needs_foreground}, length_weight={self.length_weight:g}, "
            f"smoothness={self.smoothness:g}, memory={self.memory}, eps={self.eps:g}"
        )


def _counted(count: int, known: Tensor | None, like: Tensor) -> Tensor:
    """1 for every pair i < j of a case i of the batch and any other case j, 0 if j is an empty place of the memory."""
    cases = like.new_ones(count)
    if known is not None:
        cases = torch.cat([cases, known.to(cases.dtype)])
    return torch.cat([cases[i + 1 :] for i in range(count)])


def _check_foreground(foreground: Tensor | None, student: Tensor) -> None:
    if foreground is None:
        return
    if foreground.ndim != student.ndim or foreground.shape[:2] != (len(student), 1) or foreground.dtype != torch.bool:
        raise ValueError(
            f"foreground must be boolean (B, 1, *spatial) with batch size {len(student)} in {student.ndim - 2}-D, "
            f"got {foreground.dtype} {tuple(foreground.shape)}"
        )


def _check_recent(student: Tensor, teacher: Tensor, recent: RecentCases) -> None:
    for new, kept in ((student, recent.student), (teacher, recent.teacher)):
        if new.shape[1:] != kept.shape[1:]:
            raise ValueError(
                f"the memory holds pooled features {tuple(kept.shape[1:])}, those of the batch are "
                f"{tuple(new.shape[1:])}"
            )
