"""Dual self-distillation: a network's last decoder level teaches all its levels, and each level its neighbour.

Shao et al., "DSVM-UNet: Enhancing VM-UNet with Dual Self-distillation for Medical Image Segmentation", eq. 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_kd.losses.chunks import is_large, sum_over_chunks
from nnunet_kd.losses.features import (
    check_number,
    energy,
    in_type_of,
    pointwise_convolution,
    single_precision,
)
from nnunet_kd.losses.resizing import GridProjection, resized_errors


class DualSelfAdapters(nn.Module):
    """The learnable 1x1(x1) convolutions of the loss, with bias; levels from the finest.

    Attributes:
        encoder: Every encoder level to the width of the last decoder level.
        decoder: Every decoder level but the last to the same width.
        encoder_steps: Encoder level l + 1 to the width of level l.
        decoder_steps: Decoder level l + 1 to the width of level l.
        resizing: Every encoder level, then every decoder level but the last, to the grid of the last; empty unless
            learned.
        made_for: The two lists of widths and the number of axes.
        parts: Whether the first two were built, and the last two.

    Args:
        encoder_widths: Channels of the encoder's levels, finest first.
        decoder_widths: Of the decoder's; its finest level, the last to be computed, comes first.
        dim: Number of spatial axes.
        projection: Build the first two.
        progressive: Build the last two.
        grids: Sizes of the encoder's grids, finest first, if the resizing is learned.
    """

    def __init__(
        self,
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        dim: int,
        projection: bool = True,
        progressive: bool = True,
        grids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.made_for = (list(encoder_widths), list(decoder_widths), dim)
        self.parts = (projection, progressive)
        target = decoder_widths[0]
        self.encoder = _convolutions([(width, target) for width in encoder_widths], dim, projection)
        self.decoder = _convolutions([(width, target) for width in decoder_widths[1:]], dim, projection)
        self.encoder_steps = _convolutions(_deeper_to_finer(encoder_widths), dim, progressive)
        self.decoder_steps = _convolutions(_deeper_to_finer(decoder_widths), dim, progressive)
        levels = [] if grids is None else [*grids, *grids[1 : len(decoder_widths)]]
        self.resizing = nn.ModuleList(GridProjection(grid, levels[0]) for grid in levels)


class DualSelfLoss(nn.Module):
    r"""Projection and progressive self-distillation, :math:`\alpha L_{proj} + \beta L_{prog}`.

    With encoder levels :math:`f^e_1 .. f^e_M` and decoder levels :math:`f^d_1 .. f^d_D`, level 1 the finest, D the
    mean squared error, R linear resizing, :math:`\phi` a convolution of its own each time, and
    :math:`\bar f` a level that teaches and receives no gradient:

    .. math::
        L_{proj} = \sum_{l=1}^{M} D(R\,\phi f^e_l, \bar f^d_1) + \sum_{l=2}^{D} D(R\,\phi f^d_l, \bar f^d_1)

        L_{prog} = \sum_{l=2}^{M} D(f^e_{l-1}, R\,\phi \bar f^e_l) + \sum_{l=2}^{D} D(R\,\phi f^d_l, \bar f^d_{l-1})

    The level nearer to the output teaches: in the encoder the deeper one, in the decoder the finer. (Eq. 2 prints
    :math:`f^e_1` as the target of the encoder; the text says the decoder's last layer.) The convolution of a teaching
    encoder level does learn. nnU-Net's decoder has one level less than its encoder, VM-UNet's has as many.

    A 1x1 convolution and linear resizing commute, so levels are convolved on their own grid; they are compared there,
    too (:func:`resized_errors`). Large levels stay in their own type and are taken to float32 chunk by chunk.

    Args:
        alpha: Weight of the projection (paper: 1); 0 leaves it and its adapters out.
        beta: Weight of the progressive part (paper: 0.5); 0 leaves it out.
        resizing: R in :math:`L_{proj}`: ``"linear"`` interpolation, or ``"learned"`` for a linear projection of every
            level, the finest included (Lin in eq. 2), which fixes the size of the patch.

    Raises:
        ValueError: For a weight below 0, or both 0, or a resizing of another name.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 0.5, resizing: str = "linear") -> None:
        super().__init__()
        check_number("alpha", alpha, positive=False)
        check_number("beta", beta, positive=False)
        if not alpha and not beta:
            raise ValueError("alpha and beta are both 0: nothing is distilled")
        if resizing not in ("linear", "learned"):
            raise ValueError(f"resizing must be 'linear' or 'learned', got {resizing!r}")
        if resizing == "learned" and not alpha:
            raise ValueError("resizing is learned for the projection, which alpha 0 leaves out: set one of them")
        self.resizing = resizing
        self.alpha = float(alpha)
        self.beta = float(beta)

    def adapters(
        self,
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        dim: int,
        grids: Sequence[Sequence[int]] | None = None,
    ) -> DualSelfAdapters:
        """The adapters of a network with these widths and, for a learned resizing, grids; finest level first.

        Raises:
            ValueError: For a learned resizing without grids.
        """
        learned = self.resizing == "learned"
        if learned and grids is None:
            raise ValueError("a learned resizing needs the sizes of the grids")
        parts = (self.alpha > 0, self.beta > 0)
        return DualSelfAdapters(encoder_widths, decoder_widths, dim, *parts, grids if learned else None)

    def forward(self, encoder: Sequence[Tensor], decoder: Sequence[Tensor], adapters: DualSelfAdapters) -> Tensor:
        """Loss of one network.

        Args:
            encoder: Features of the encoder's levels, finest first, any floating type; computed in float32 at least.
            decoder: Features of the decoder's, finest (that is last) first.
            adapters: What :meth:`adapters` returned for their widths.

        Shape:
            ``(B, C_l, *spatial_l)`` each, two or three spatial axes, to a scalar.

        Raises:
            ValueError: For features that are not ``(B, C, *spatial)`` or of different batches, or adapters of others.
        """
        _check_levels(encoder, decoder)
        self._check_adapters(encoder, decoder, adapters)
        dtype = single_precision(*encoder, *decoder)
        with torch.autocast(decoder[0].device.type, enabled=False):
            encoder, decoder = (
                [one if is_large(one) else one.to(dtype) for one in them] for them in (encoder, decoder)
            )
            total = decoder[0].new_zeros((), dtype=dtype)
            if self.alpha:
                total = total + self.alpha * self.projection(encoder, decoder, adapters)
            if self.beta:
                total = total + self.beta * self.progressive(encoder, decoder, adapters)
            return total

    def projection(self, encoder: Sequence[Tensor], decoder: Sequence[Tensor], adapters: DualSelfAdapters) -> Tensor:
        """Eq. 2: every level against the last decoder level; arguments as for :meth:`forward`."""
        convolutions = (*adapters.encoder, *adapters.decoder)
        target = decoder[0].detach()
        maps, errors = [], []
        if self.resizing == "learned":
            levels = zip(convolutions, adapters.resizing, (*encoder, *decoder[1:]), strict=True)
            return torch.stack([_projected_error(*level, target) for level in levels]).sum()
        for convolution, level in zip(convolutions, (*encoder, *decoder[1:]), strict=True):
            if is_large(target) and level.shape[2:] == target.shape[2:]:
                errors.append(_error_by_chunks(level, target, convolution))
            else:
                maps.append(_convolved(level, convolution))
        return sum(errors, resized_errors(maps, target))

    def progressive(self, encoder: Sequence[Tensor], decoder: Sequence[Tensor], adapters: DualSelfAdapters) -> Tensor:
        """Eq. 3: adjacent levels; arguments as for :meth:`forward`."""
        steps = zip(adapters.encoder_steps, encoder[1:], encoder[:-1], strict=True)
        errors = [resized_errors([_convolved(deeper.detach(), by)], finer) for by, deeper, finer in steps]
        steps = zip(adapters.decoder_steps, decoder[1:], decoder[:-1], strict=True)
        errors += [resized_errors([_convolved(deeper, by)], finer.detach()) for by, deeper, finer in steps]
        return torch.stack(errors).sum() if errors else (0 * encoder[0]).sum()  # of one level there are no neighbours

    def _check_adapters(self, encoder: Sequence[Tensor], decoder: Sequence[Tensor], adapters: DualSelfAdapters) -> None:
        widths = [[level.shape[1] for level in levels] for levels in (encoder, decoder)]
        got = (*widths, decoder[0].ndim - 2)
        if got != adapters.made_for:
            raise ValueError(
                "the adapters are for encoder widths {}, decoder widths {} in {}-D".format(*adapters.made_for)
                + ", the features have {}, {} in {}-D".format(*got)
            )
        if (self.alpha and not adapters.parts[0]) or (self.beta and not adapters.parts[1]):
            raise ValueError(f"the adapters lack a part of alpha {self.alpha:g} and beta {self.beta:g}")
        if (self.resizing == "learned") != (len(adapters.resizing) > 0):
            raise ValueError(f"the adapters were made for another resizing than {self.resizing!r}")

    def extra_repr(self) -> str:
        learned = ", resizing=learned" if self.resizing == "learned" else ""
        return f"alpha={self.alpha:g}, beta={self.beta:g}{learned}"


def _projected_error(convolution: nn.Module, resizing: nn.Module, level: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of ``Conv(Lin(f))``; the convolution comes first, on the coarser grid, and its bias last."""
    level = level.to(single_precision(level))
    weight, bias = (convolution.get_parameter(name).to(level.dtype) for name in ("weight", "bias"))
    narrow = torch.einsum("oc,bc...->bo...", weight.flatten(1), level)
    difference = resizing(narrow) + bias.view(-1, *[1] * (level.ndim - 2)) - target.to(level.dtype)
    return energy(difference) / target.numel()


def _convolved(level: Tensor, convolution: nn.Module) -> Tensor:
    level = level.to(single_precision(level))
    convolved: Tensor = in_type_of(level, convolution)(level)
    return convolved


def _error_by_chunks(features: Tensor, target: Tensor, convolution: nn.Module) -> Tensor:
    """Mean squared error of convolved features on the target's grid; no map of the target's size is kept."""

    def squares(features: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = single_precision(features, target)
        features, target = features.to(dtype), target.to(dtype)
        parameters = {"weight": weight.to(dtype), "bias": bias.to(dtype)}
        return energy(torch.func.functional_call(convolution, parameters, (features,)) - target)

    parameters = (convolution.get_parameter("weight"), convolution.get_parameter("bias"))
    return sum_over_chunks(squares, (features, target), parameters) / target.numel()


def _convolutions(widths: Sequence[tuple[int, int]], dim: int, wanted: bool) -> nn.ModuleList:
    chosen = widths if wanted else ()
    return nn.ModuleList(pointwise_convolution(inputs, outputs, dim, bias=True) for inputs, outputs in chosen)


def _deeper_to_finer(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(widths[1:], widths[:-1], strict=True))


def _check_levels(encoder: Sequence[Tensor], decoder: Sequence[Tensor]) -> None:
    if not encoder or not decoder:
        raise ValueError("features of both encoder and decoder are needed")
    batch, ndim = decoder[0].shape[0], decoder[0].ndim
    for name, levels in (("encoder", encoder), ("decoder", decoder)):
        for number, level in enumerate(levels, 1):
            if level.ndim not in (4, 5):
                shape = tuple(level.shape)
                raise ValueError(f"expected {name} level {number} (B, C, *spatial) in 2-D or 3-D, got {shape}")
            if level.ndim != ndim or level.shape[0] != batch:
                raise ValueError(
                    f"{name} level {number} is {tuple(level.shape)}: batch or number of axes is not that of the last "
                    f"decoder level, {tuple(decoder[0].shape)}"
                )
