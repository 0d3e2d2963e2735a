"""Dynamic Modal Interactive Fusion (DMIF) of the features of any number of modalities.

Wang et al., "BrainSegDMIF: A Dynamic Fusion-enhanced SAM for Brain Lesion Segmentation", section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DynamicModalFusion(nn.Module):
    r"""DMIF, eq. 1-7, which fuses the features :math:`f_1 .. f_M` of M modalities.

    .. math::
        f'_m &= \mathrm{Norm}(W_o f_m + W_a \bar f + b_1), \qquad \bar f = \tfrac1M \textstyle\sum_j f_j \\
        f''_m &= W_2\, \mathrm{GELU}(f'_m) + b_2 \\
        w_m &= \mathrm{softmax}_m(\mathrm{MLP}(f''_m)), \qquad \textstyle\sum_m w_m = 1 \\
        F &= \textstyle\sum_m w_m \odot f''_m, \qquad F_c = F + \gamma(f_1 .. f_M) \\
        f_{fus} &= F_c + \bar f

    :math:`W_1` of eq. 1 mixes modalities. Here it is the linear map that treats all modalities alike, with one matrix
    for the modality itself and one for the mean of all (Zaheer et al., "Deep Sets", 2017, lemma 3). A permutation of
    the modalities permutes f', f'' and the weights, and does not change the sums. The map works for any M.

    The paper leaves two points open. The weights have the axes of f'' here, since eq. 5 multiplies elements. The
    enhancement branch, which is to be nonlinear and to see all modalities, is
    :math:`\gamma = V_2\, \frac1M \sum_m \mathrm{GELU}(V_1 f_m)`.

    Args:
        embed_dim: D, the number of features per token.
        interaction_dim: The number of features of f'; ``None`` for half of D.
        bottleneck_dim: The width of the hidden layers of the MLP and the branch; ``None`` for a quarter of D.
    """

    def __init__(self, embed_dim: int, interaction_dim: int | None = None, bottleneck_dim: int | None = None) -> None:
        super().__init__()
        interaction_dim = interaction_dim or embed_dim // 2
        bottleneck_dim = bottleneck_dim or embed_dim // 4
        self.own = nn.Linear(embed_dim, interaction_dim)
        self.mean = nn.Linear(embed_dim, interaction_dim, bias=False)  # b_1 belongs to the other map
        self.norm = nn.LayerNorm(interaction_dim)
        self.remap = nn.Linear(interaction_dim, embed_dim)
        self.importance = nn.Sequential(
            nn.Linear(embed_dim, bottleneck_dim), nn.GELU(), nn.Linear(bottleneck_dim, embed_dim)
        )
        self.branch_in = nn.Linear(embed_dim, bottleneck_dim)
        self.branch_out = nn.Linear(bottleneck_dim, embed_dim)

    def interact(self, features: Tensor) -> Tensor:
        """Let every modality interact with all others, eq. 1 and 2; ``(B, M, *grid, D)`` to the same shape."""
        mixed = self.own(features) + self.mean(features.mean(1, keepdim=True))
        interacted: Tensor = self.remap(nn.functional.gelu(self.norm(mixed)))
        return interacted

    def weights(self, interacted: Tensor) -> Tensor:
        """Compute the weights of eq. 3 and 4, whose sum over the modalities (axis 1) is one.

        They are in float32 or higher precision, ``(B, M, *grid, D)`` to the same shape.

        Args:
            interacted: The result of :meth:`interact`.
        """
        scores: Tensor = self.importance(interacted)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(1)

    def enhance(self, features: Tensor) -> Tensor:
        """Compute the enhancement branch gamma, ``(B, M, *grid, D)`` to ``(B, *grid, D)``."""
        enhanced: Tensor = self.branch_out(nn.functional.gelu(self.branch_in(features)).mean(1))
        return enhanced

    def forward(self, features: Tensor) -> Tensor:
        """Fuse the features of all modalities, eq. 1-7.

        Args:
            features: The features of all modalities, stacked along axis 1 (in the paper, along the last axis).

        Shape:
            ``(B, M, *grid, D)`` to ``(B, *grid, D)``, any number of grid axes.
        """
        interacted = self.interact(features)
        weighted = (interacted * self.weights(interacted)).sum(1)
        return weighted + self.enhance(features) + features.mean(1)
