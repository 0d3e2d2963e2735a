"""Dynamic Modal Interactive Fusion: features of several modalities to one, whatever their number and order.

Wang et al., "BrainSegDMIF: A Dynamic Fusion-enhanced SAM for Brain Lesion Segmentation", section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DynamicModalFusion(nn.Module):
    r"""DMIF, eq. 1-7, of the features :math:`f_1 .. f_M` of M modalities.

    .. math::
        f'_m &= \mathrm{Norm}(W_o f_m + W_a \bar f + b_1), \qquad \bar f = \tfrac1M \textstyle\sum_j f_j \\
        f''_m &= W_2\, \mathrm{GELU}(f'_m) + b_2 \\
        w_m &= \mathrm{softmax}_m(\mathrm{MLP}(f''_m)), \qquad \textstyle\sum_m w_m = 1 \\
        F &= \textstyle\sum_m w_m \odot f''_m, \qquad F_c = F + \gamma(f_1 .. f_M) \\
        f_{fus} &= F_c + \bar f

    :math:`W_1` of eq. 1 mixes modalities. Here it is the linear map that does so and treats all alike, one matrix for
    the modality itself and one for the mean of all (Zaheer et al., "Deep Sets", 2017, lemma 3): a permutation of the
    modalities permutes f', f'' and the weights, and leaves the sums as they are. It works for any M.

    The paper leaves open: the axes of the weights, here as many as f'' has, since eq. 5 multiplies elements; and the
    enhancement branch, said to be nonlinear and to see all modalities, here
    :math:`\gamma = V_2\, \frac1M \sum_m \mathrm{GELU}(V_1 f_m)`.

    Args:
        embed_dim: D, features of a token.
        interaction_dim: Of f'; half of D if left out.
        bottleneck_dim: Of the hidden layers of MLP and branch; a quarter of D if left out.
    """

    def __init__(self, embed_dim: int, interaction_dim: int | None = None, bottleneck_dim: int | None = None) -> None:
        super().__init__()
        interaction_dim = interaction_dim or embed_dim // 2
        bottleneck_dim = bottleneck_dim or embed_dim // 4
        self.own = nn.Linear(embed_dim, interaction_dim)
        self.mean = nn.Linear(embed_dim, interaction_dim, bias=False)  # the other map has b_1
        self.norm = nn.LayerNorm(interaction_dim)
        self.remap = nn.Linear(interaction_dim, embed_dim)
        self.importance = nn.Sequential(
            nn.Linear(embed_dim, bottleneck_dim), nn.GELU(), nn.Linear(bottleneck_dim, embed_dim)
        )
        self.branch_in = nn.Linear(embed_dim, bottleneck_dim)
        self.branch_out = nn.Linear(bottleneck_dim, embed_dim)

    def interact(self, features: Tensor) -> Tensor:
        """Eq. 1 and 2: every modality influenced by all, ``(B, M, *grid, D)`` to the same."""
        mixed = self.own(features) + self.mean(features.mean(1, keepdim=True))
        interacted: Tensor = self.remap(nn.functional.gelu(self.norm(mixed)))
        return interacted

    def weights(self, interacted: Tensor) -> Tensor:
        """Eq. 3 and 4: float32 at least, sums over the modalities (axis 1) are one; ``(B, M, *grid, D)`` to the same.

        Args:
            interacted: From :meth:`interact`.
        """
        scores: Tensor = self.importance(interacted)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(1)

    def enhance(self, features: Tensor) -> Tensor:
        """The branch gamma beside the weighted sum, ``(B, M, *grid, D)`` to ``(B, *grid, D)``."""
        enhanced: Tensor = self.branch_out(nn.functional.gelu(self.branch_in(features)).mean(1))
        return enhanced

    def forward(self, features: Tensor) -> Tensor:
        """Eq. 1-7.

        Args:
            features: Of all modalities, stacked along axis 1 (the paper stacks them along the last).

        Shape:
            ``(B, M, *grid, D)`` to ``(B, *grid, D)``, any number of grid axes.
        """
        interacted = self.interact(features)
        weighted = (interacted * self.weights(interacted)).sum(1)
        return weighted + self.enhance(features) + features.mean(1)
