"""FocalDice: half the focal loss and the Dice loss of a segmentation.

Wang et al., "BrainSegDMIF: A Dynamic Fusion-enhanced SAM for Brain Lesion Segmentation", eq. 14.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_kd.losses.features import check_number, in_single_precision

FOCAL_SHARE = 0.5


class FocalDiceLoss(nn.Module):
    r"""Eq. 14, for labels or regions.

    .. math::
        L &= \tfrac12\, \mathrm{mean}_x\{-\alpha_x (1 - p_x)^\gamma \log p_x\}
            + \mathrm{mean}_c\Bigl\{1 - \frac{2 \sum_x p_c t_c + s}{\sum_x p_c + \sum_x t_c + s}\Bigr\}

    :math:`p_x` is the probability of what a voxel is: of its class in the softmax, or region by region of being inside
    or outside, the mean taken over regions, too. Dice is that of every image and foreground class or region. The paper
    defines neither part; the focal loss is Lin et al., "Focal Loss for Dense Object Detection", 2017, eq. 4 and 5.

    Args:
        gamma: How much less voxels count that are right already; 0 is cross-entropy.
        alpha: Weight of foreground voxels; background's is 1 - alpha. All weigh 1 if left out.
        smooth: s; with it, a class that is neither there nor found costs nothing.
        batch_dice: Sum over the images of a batch before dividing, as nnU-Net does for slices.

    Raises:
        ValueError: For numbers out of range.
    """

    def __init__(
        self, gamma: float = 2.0, alpha: float | None = None, smooth: float = 1.0, batch_dice: bool = False
    ) -> None:
        super().__init__()
        check_number("gamma", gamma, positive=False)
        check_number("smooth", smooth)
        if alpha is not None:
            check_number("alpha", alpha)
            if alpha >= 1:
                raise ValueError(f"alpha must be below 1, got {alpha!r}")
        if not isinstance(batch_dice, bool):
            raise ValueError(f"batch_dice must be true or false, got {batch_dice!r}")
        self.gamma = float(gamma)
        self.alpha = alpha if alpha is None else float(alpha)
        self.smooth = float(smooth)
        self.batch_dice = batch_dice

    def forward(self, logits: Tensor, target: Tensor, regions: bool = False, valid: Tensor | None = None) -> Tensor:
        """Loss of one resolution.

        Args:
            logits: Any floating type; computed in float32 at least.
            target: Label of each voxel, from 0, the background, to classes - 1; or for each region whether a voxel is
                inside, boolean or 0 and 1.
            regions: The channels are regions, not classes of one softmax.
            valid: Voxels that count, boolean; all of them if left out. Others may have any label. Without any, the
                loss is 0.

        Shape:
            ``(B, classes, *spatial)``, two or three spatial axes; the target ``(B, 1, *spatial)`` or ``(B, *spatial)``,
            of regions ``(B, classes, *spatial)``; valid ``(B, 1, *spatial)``; to a scalar.

        Raises:
            ValueError: For tensors that do not fit each other, labels of a single class, or, on the CPU, labels that
                are none of the classes.
        """
        target = _checked_target(logits, target, regions, valid)
        if valid is not None:
            target = torch.where(valid, target, 0)
        if not regions and target.device.type == "cpu":  # to look at another device's would be to wait for it
            _check_labels(target, logits.shape[1])
        with in_single_precision(logits) as (logits,):
            if regions:
                inside = target > 0.5
                log_right = F.logsigmoid(torch.where(inside, logits, -logits))
                probabilities, truth = logits.sigmoid(), inside
            else:
                log_probabilities = F.log_softmax(logits, 1)
                log_right = log_probabilities.gather(1, target.long())
                inside = target > 0
                classes = torch.arange(1, logits.shape[1], device=logits.device)
                truth = target == classes.view(1, -1, *[1] * (logits.ndim - 2))
                probabilities = log_probabilities[:, 1:].exp()
            focal = self._focal(log_right, inside)
            if valid is not None:
                focal, probabilities, truth = focal * valid, probabilities * valid, truth & valid
            voxels = focal.numel() if valid is None else (valid.sum() * focal.shape[1]).clamp(min=1)
            return FOCAL_SHARE * focal.sum() / voxels + self._dice(probabilities, truth.to(probabilities.dtype))

    def _focal(self, log_right: Tensor, inside: Tensor) -> Tensor:
        """Of every voxel, from the logarithm of the probability of what it is."""
        # 1 - p without cancellation; where it is 0, a power below 1 would have no gradient.
        wrong = (-torch.expm1(log_right)).clamp(min=torch.finfo(log_right.dtype).tiny)
        focal = -(wrong**self.gamma) * log_right
        return focal if self.alpha is None else torch.where(inside, self.alpha * focal, (1 - self.alpha) * focal)

    def _dice(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        axes = ([0] if self.batch_dice else []) + list(range(2, truth.ndim))
        overlap = (probabilities * truth).sum(axes)
        total = probabilities.sum(axes) + truth.sum(axes)
        return (1 - (2 * overlap + self.smooth) / (total + self.smooth)).mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, alpha={self.alpha}, smooth={self.smooth:g}, batch_dice={self.batch_dice}"


def _check_labels(target: Tensor, classes: int) -> None:
    lowest, highest = (float(label) for label in target.aminmax())
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels of voxels that count must be 0 to {classes - 1}, got {lowest:g} to {highest:g}")


def _checked_target(logits: Tensor, target: Tensor, regions: bool, valid: Tensor | None) -> Tensor:
    """The target with a channel axis."""
    if logits.ndim not in (4, 5):
        raise ValueError(f"expected logits (B, C, *spatial) in 2-D or 3-D, got {tuple(logits.shape)}")
    single = (len(logits), 1, *logits.shape[2:])
    if valid is not None and (valid.shape != single or valid.dtype != torch.bool):
        raise ValueError(f"valid must be boolean {single}, got {valid.dtype} {tuple(valid.shape)}")
    if regions:
        if target.shape != logits.shape:
            raise ValueError(f"expected one target channel a region, {tuple(logits.shape)}, got {tuple(target.shape)}")
        return target
    if logits.shape[1] < 2:
        raise ValueError("labels need a background and another class, got a single channel of logits")
    if target.ndim == logits.ndim - 1:
        target = target.unsqueeze(1)
    if target.shape != single:
        raise ValueError(f"expected labels {single}, with or without the channel axis, got {tuple(target.shape)}")
    return target
