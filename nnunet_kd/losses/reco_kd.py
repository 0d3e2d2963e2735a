"""Region- and context-aware distillation.

Lan et al., "ReCo-KD: Region- and Context-Aware Knowledge Distillation for Efficient 3D Medical Image Segmentation",
arXiv 2601.08301, 2026. Authors' code: ``methods/reco.py`` of https://github.com/ClinicaAlpha/DPRD-3D-MedSeg
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_kd.losses.area_weights import area_weights
from nnunet_kd.losses.chunks import is_large
from nnunet_kd.losses.context import ContextBlock, by_chunks, context
from nnunet_kd.losses.features import (
    check_features,
    check_number,
    check_temperature,
    is_pointwise,
    pointwise_convolution,
    single_precision,
)
from nnunet_kd.losses.processes import mean_over_processes


class ReCoKDAdapter(nn.Module):
    """phi of one stage, and the context blocks of both networks."""

    def __init__(self, phi: nn.Module, student: ContextBlock, teacher: ContextBlock) -> None:
        super().__init__()
        self.phi = phi
        self.student = student
        self.teacher = teacher


class ReCoKDLoss(nn.Module):
    r"""Features follow the teacher's where it is active, structures of every size alike, and so does their context.

    With the student's features :math:`P = \phi(F_S)` and the teacher's T of C channels and N voxels, attention over
    voxels :math:`A = N\,\mathrm{softmax}_x(\mathrm{mean}_c |F| / \tau)` and over channels
    :math:`B = C\,\mathrm{softmax}_c(\mathrm{mean}_x |F| / \tau)`, the weights M of the foreground and of the background
    (:mod:`nnunet_kd.losses.area_weights`), and what a learned context block g adds to each channel,

    .. math:: L = \sum_{r \in \{fg, bg\}} \alpha_r
        \frac{\sum M_r\, A_T\, B_T\, (P - T)^2}{C \sum M_r}
        + \beta\left(\mathrm{mean} |A_S - A_T| + \mathrm{mean} |B_S - B_T|\right)
        + \gamma\, \mathrm{mean}\left[(P + g_S(P)) - (T + g_T(T))\right]^2

    Sums and means are over the batch, in a distributed training the joint one. This is what the authors' code computes
    (by the first author of the paper, in the code of a later one); the paper's own equations may differ. Ignored voxels
    belong to neither region here; in the code they are background.

    The code makes phi and the context blocks after the optimizer, so they keep their start, at which g is 0. That is
    the option ``projection: "frozen"`` of the term; with it the last part is a plain squared error.

    Args:
        temperature: tau.
        foreground_weight: alpha of the foreground.
        background_weight: alpha of the background.
        attention_weight: beta.
        context_weight: gamma.
        stage_decay: How fast the weights of the stages fall: with the number of voxels to this power.

    Raises:
        ValueError: For an option that is none of these.
    """

    needs_structures = True

    def __init__(
        self,
        temperature: float = 0.5,
        foreground_weight: float = 1.0,
        background_weight: float = 1.0,
        attention_weight: float = 1.0,
        context_weight: float = 1.0,
        stage_decay: float = 0.4,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        weights = {
            "foreground_weight": foreground_weight,
            "background_weight": background_weight,
            "attention_weight": attention_weight,
            "context_weight": context_weight,
        }
        for name, value in weights.items():
            check_number(name, value, positive=False)
        if not any(weights.values()):
            raise ValueError(f"one of {', '.join(weights)} must be above 0")
        check_number("stage_decay", stage_decay, positive=False)
        if stage_decay > 10:
            raise ValueError(f"stage_decay must be at most 10, got {stage_decay!r}")
        self.temperature = float(temperature)
        self.weights = {name: float(value) for name, value in weights.items()}
        self.stage_decay = float(stage_decay)

    def projection(self, student_channels: int, teacher_channels: int, dim: int) -> ReCoKDAdapter:
        """phi, a 1x1(x1) convolution with bias where the widths differ, and the context blocks of one stage."""
        phi: nn.Module = nn.Identity()
        if student_channels != teacher_channels:
            phi = pointwise_convolution(student_channels, teacher_channels, dim, bias=True)
        return ReCoKDAdapter(phi, ContextBlock(teacher_channels), ContextBlock(teacher_channels))

    def stage_weights(self, count: int, dim: int) -> list[float]:
        """Return the weights of the stages, finest first; their sum is 1.

        As in the authors' code every stage is taken to halve all axes.
        """
        weights = [2.0 ** (-dim * self.stage_decay * stage) for stage in range(count)]
        return [weight / sum(weights) for weight in weights]

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        projection: ReCoKDAdapter,
        *,
        target: Tensor,
        regions: bool = False,
        valid: Tensor | None = None,
        num_classes: int | None = None,
    ) -> Tensor:
        """Loss of one stage. The teacher's features receive no gradient.

        Args:
            student: Features of the student, any floating type; computed in float32 at least.
            teacher: Features of the teacher on the same grid.
            projection: From :meth:`projection`.
            target: The class of every voxel, ``(B, 1, *annotated)``, 0 being the background; or with ``regions``
                whether it is in each region, ``(B, regions, *annotated)``.
            regions: Whether the target holds regions.
            valid: Which voxels are not ignored, boolean ``(B, 1, *annotated)``; ``None`` for all.
            num_classes: Classes are below this; looked up, which waits for the device, if left out.

        Shape:
            ``(B, C_S, *spatial)``, ``(B, C_T, *spatial)``, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For tensors that do not fit each other.
        """
        phi = projection.phi if is_pointwise(projection.phi) else None
        check_features(student, teacher, phi)
        _check_blocks(projection, teacher.shape[1])
        _check_target(target, valid, student, regions, num_classes)
        teacher, dtype, grid = teacher.detach(), single_precision(student, teacher), student.shape[2:]
        with torch.autocast(student.device.type, enabled=False):
            student = student.to(dtype)  # once, so that its gradient is rounded once
            masks = area_weights(target, grid, regions, valid, num_classes, dtype)
            large = is_large(teacher)
            matrix, bias = _linear(phi, teacher.shape[1], dtype, student.device)
            with torch.no_grad():
                size_map, sizes, sums = by_chunks(_sums, (teacher,), (matrix,), large, parted=1)
                voxels, channels = self._attention(size_map, sizes)
                weights = voxels * self._region_weights(masks, teacher.shape[1])
            maps, shared = (student, teacher, weights), (matrix, bias, channels)
            size_map, sizes, region, square = by_chunks(_compare, maps, shared, large, parted=1)
            own = self._attention(size_map, sizes)
            attention = (own[0] - voxels).abs().mean() + (own[1] - channels).abs().mean()
            added = self._added(student, teacher, projection, matrix, bias, large)
            count = size_map[0].numel()
            residual = student.flatten(2).sum(2) @ matrix.t() + count * bias - sums  # of every channel
            cross = square + 2 * (added * residual).sum() + count * added.square().sum()
            loss = (
                region
                + self.weights["attention_weight"] * attention
                + self.weights["context_weight"] * cross / teacher.numel()
            )
            return torch.where(loss.isnan(), torch.inf, loss)  # 0 times a square beyond the type

    def _attention(self, size_map: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Attention over voxels ``(B, 1, *spatial)`` and channels ``(B, C)``, with means of 1.

        Args:
            size_map: The sum of every voxel's magnitudes, ``(B, 1, *spatial)``.
            sizes: The sum of every channel's magnitudes, ``(B, C)``.
        """
        channels, count = sizes.shape[1], size_map[0].numel()
        voxels = torch.softmax(size_map.flatten(1) / channels / self.temperature, 1)
        return count * voxels.view(size_map.shape), channels * torch.softmax(sizes / count / self.temperature, 1)

    def _region_weights(self, masks: tuple[Tensor, Tensor], channels: int) -> Tensor:
        """The weights of both regions together, ``(B, 1, *spatial)``."""
        shares = [mean_over_processes(mask.sum()).clamp(min=1e-8) for mask in masks]
        factors = (self.weights["foreground_weight"], self.weights["background_weight"])
        parts = [factor * mask / (share * channels) for factor, mask, share in zip(factors, masks, shares, strict=True)]
        return parts[0] + parts[1]

    def _added(
        self, student: Tensor, teacher: Tensor, blocks: ReCoKDAdapter, matrix: Tensor, bias: Tensor, large: bool
    ) -> Tensor:
        """What the student's context block adds to every channel, less what the teacher's does, ``(B, C)``."""
        dtype = matrix.dtype
        attention = blocks.student.attention.to(dtype) @ matrix  # at the student's width: phi is linear
        ours = context(student, attention, large) @ matrix.t() + bias
        theirs = context(teacher, blocks.teacher.attention.to(dtype), large)
        return _transformed(ours, blocks.student) - _transformed(theirs, blocks.teacher)

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}={value:g}" for name, value in self.weights.items())
        return f"temperature={self.temperature:g}, {weights}, stage_decay={self.stage_decay:g}"


def _sums(features: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of every voxel's and of every channel's magnitudes, and of every channel, in the type of ``like``."""
    flat = features.flatten(2)
    of_voxels, of_channels = _sizes(flat.to(like.dtype))
    return of_voxels.view(len(features), 1, *features.shape[2:]), of_channels, flat.sum(2, dtype=like.dtype)


def _compare(
    student: Tensor, teacher: Tensor, weights: Tensor, matrix: Tensor, bias: Tensor, channels: Tensor
) -> tuple[Tensor, ...]:
    """All that is summed over voxels of the projected student and its residual, which exist in here only.

    Returns:
        The sums of every voxel's and of every channel's magnitudes, the weighted squared error, and the squared error.
    """
    flat = student.flatten(2)
    affine = torch.cat([matrix, bias[:, None]], 1).expand(len(flat), -1, -1)
    features = torch.bmm(affine, torch.cat([flat, torch.ones_like(flat[:, :1])], 1))
    rows = torch.stack([channels, torch.ones_like(channels)], 1)
    energies, of_voxels, of_channels = _Comparison.apply(features, teacher.flatten(2).to(matrix.dtype), rows)
    weighted, plain = energies.unbind(1)
    of_voxels = of_voxels.view(len(student), 1, *student.shape[2:])
    return of_voxels, of_channels, (weights.flatten(1) * weighted).sum(), plain.sum()


def _sizes(features: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of the magnitudes of ``(B, C, voxels)`` over the channels and over the voxels."""
    sizes = features.abs()
    return (sizes.new_ones(len(sizes), 1, sizes.shape[1]) @ sizes)[:, 0], sizes.sum(2)


class _Comparison(torch.autograd.Function):
    """Weighted sums over the channels of squared residuals ``(B, C, voxels)``, and :func:`_sizes` of the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual = features - teacher
        ctx.save_for_backward(features, residual, rows)
        return rows @ residual.square(), *_sizes(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, energies: Tensor, of_voxels: Tensor, of_channels: Tensor) -> tuple[Tensor | None, ...]:
        features, residual, rows = ctx.saved_tensors
        gradient = (rows.transpose(1, 2) @ (2 * energies)).mul_(residual)
        signs = features.sign()
        gradient.addcmul_(signs, of_voxels[:, None]).addcmul_(signs, of_channels[:, :, None])
        return gradient, None, None


def _linear(phi: nn.Module | None, channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix and the bias of phi, in the type to compute in."""
    if not is_pointwise(phi):
        return torch.eye(channels, dtype=dtype, device=device), torch.zeros(channels, dtype=dtype, device=device)
    matrix = phi.weight.flatten(1).to(dtype)
    return matrix, matrix.new_zeros(channels) if phi.bias is None else phi.bias.to(dtype)


def _transformed(contexts: Tensor, block: ContextBlock) -> Tensor:
    state = {name: entry.to(contexts.dtype) for name, entry in block.transform.named_parameters()}
    added: Tensor = torch.func.functional_call(block.transform, state, (contexts,))
    return added


def _check_blocks(projection: ReCoKDAdapter, channels: int) -> None:
    for block in (projection.student, projection.teacher):
        if len(block.attention) != channels:
            raise ValueError(f"the context blocks are for {len(block.attention)} channels, the teacher has {channels}")


def _check_target(target: Tensor, valid: Tensor | None, student: Tensor, regions: bool, classes: int | None) -> None:
    fits = target.ndim == student.ndim and len(target) == len(student) and target.shape[1] >= 1
    if not fits or (not regions and target.shape[1] != 1):
        raise ValueError(
            f"target must be (B, {'regions' if regions else 1}, *spatial) with batch size {len(student)} in "
            f"{student.ndim - 2}-D, got {tuple(target.shape)}"
        )
    expected = (len(target), 1, *target.shape[2:])
    if valid is not None and (valid.shape != expected or valid.dtype != torch.bool):
        raise ValueError(f"valid must be boolean {expected}, got {valid.dtype} {tuple(valid.shape)}")
    if classes is not None and classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {classes!r}")
