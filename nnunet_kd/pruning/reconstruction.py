"""Starting weights of a student whose layers give, one after the other, what its teacher's give.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3: least squares on the
outputs of the whole network, from the inputs of the thinner one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from nnunet_kd.pruning.heads import Heads, classes_of, draw_by_class, fit_head
from nnunet_kd.pruning.selection import Progress, channels_taken, draw, in_double

Places = tuple[Tensor, ...]  # numbers of images and coordinates of positions, the same for both networks


@torch.no_grad()
def reconstruct(
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Tensor],
    positions: int = 2048,
    ridge: float = 1e-3,
    *,
    heads: Heads | None = None,
    progress: Progress = lambda work, _: work,
) -> dict[str, float]:
    r"""Fit the student's convolutions, in the order in which they run, to the outputs of the teacher's.

    .. math:: \min_{W, b} \sum_p \lVert y^T(p) - W x^S(p) - b \rVert^2 + \lambda \lVert W \rVert^2

    over positions p drawn from the images. x is what the student's layer reads there once all layers before it are
    fitted, y what the teacher's gives in the channels the student has; so a layer makes up for errors of earlier ones
    as far as it can. Fitted are convolutions that run once and have no groups, of transposed ones those whose strides
    are their kernels. All other weights stay.

    Least squares pull the logits of a rare class towards their mean, which is that of the background, and can so lose
    the class. A head, a layer whose output is one of the network's, is fitted to the teacher's probabilities instead
    where ``heads`` says what its outputs are (:func:`nnunet_kd.pruning.heads.fit_head`).

    Args:
        teacher: A network with at least the student's widths, in evaluation mode. What it does not run, as heads it
            was not trained with, is not fitted.
        student: The same network but for its widths, with the weights of
            :func:`nnunet_kd.pruning.selection.selected_weights`. They are changed in place.
        batches: Images ``(B, channels, *spatial)`` of one size, two or three spatial axes, on the device of both. The
            student runs on all of them at once.
        positions: How many are drawn from an image for a layer, where it has so many.
        ridge: lambda as a share of the mean variance of x, times the number of positions.
        heads: ``"classes"``: the network's outputs are logits of exclusive classes; ``"regions"``: each is the logit
            of a region of its own; ``None``: they are numbers as those of any other layer.
        progress: Shows the work on the teacher's batches and then on the layers; takes an iterable and its length.

    Returns:
        Name of every layer that was fitted, in their order -> share of y's variance it explains.
    """
    training = student.training
    student.eval()
    try:
        layers = _layers(teacher, student, batches[0], positions, heads is not None)
        outputs = _outputs(layers, teacher, progress(batches, len(batches)), heads)
        layers = [layer for layer in layers if layer.name in outputs]
        left = iter(progress(layers, len(layers)))
        explained: dict[str, float] = {}

        def fit(layer: _Layer) -> Callable[[Any, tuple[Tensor]], None]:
            def hook(_: Any, read: tuple[Tensor]) -> None:
                next(left)
                images = torch.split(read[0], [len(batch) for batch in batches])
                explained[layer.name] = _fit(layer, images, outputs.pop(layer.name), ridge, heads)

            return hook

        with _hooks(layer.student.register_forward_pre_hook(fit(layer)) for layer in layers):
            student(torch.cat([*batches]))
        next(left, None)  # so that its progress ends
        return explained
    finally:
        student.train(training)


@dataclass(frozen=True)
class _Layer(ABC):
    """A layer of both networks, as a linear map from what it reads at a position to what it gives there.

    Attributes:
        name: Of the module.
        number: In the order of the layers.
        teacher: The teacher's.
        student: The student's.
        positions: How many of an image are drawn.
        is_head: Whether it gives one of the network's outputs, which are logits.
        norm: The student's batch normalisation of what the layer gives, if that is what runs next.
    """

    name: str
    number: int
    teacher: Any
    student: Any
    positions: int
    is_head: bool = False
    norm: Any = None

    @abstractmethod
    def reads(self, images: Tensor, places: Places) -> Tensor:
        """Of the student's input ``(B, channels, *spatial)`` what it reads at places, ``(positions, numbers)``."""

    @abstractmethod
    def gives(self, output: Tensor, places: Places) -> Tensor:
        """Of the output what belongs to these places, ``(positions, numbers)``."""

    @abstractmethod
    def grid(self, images: Tensor, output: Tensor) -> Sequence[int]:
        """Size of the grid of positions."""

    @abstractmethod
    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Take a map ``(numbers it reads, numbers it gives)`` and its intercepts."""

    def shift(self, bias: Tensor) -> None:
        """Take intercepts ``(channels,)``, or else have the normalisation subtract that much less."""
        if self.student.bias is not None:
            self.student.bias.copy_(bias)
        elif self.norm is not None:
            self.norm.running_mean.sub_(bias.to(self.norm.running_mean))

    def taught(self, output: Tensor) -> Tensor:
        """Of the teacher's output the student's channels."""
        return output.index_select(1, channels_taken(output.shape[1], self.student.out_channels).to(output.device))

    def drawn(
        self, grid: Sequence[int], output: Tensor, batch: int, heads: Heads | None
    ) -> tuple[Places, Tensor | None]:
        """Positions of the images of a batch, and what each counts; ``None``: all the same.

        Of a head's grid those of rare classes are drawn more often than others, and count less.
        """
        generator = torch.Generator().manual_seed(batch << 20 | self.number)
        size = (len(output), *grid)
        count, wanted = torch.Size(size).numel(), self.positions * len(output)
        if heads is not None and self.is_head and wanted < count:
            drawn, weights = draw_by_class(classes_of(output, heads), wanted, generator)
        else:
            drawn, weights = draw(count, wanted, generator), None
        return torch.unravel_index(drawn.to(output.device), size), weights


class _Convolution(_Layer):
    """Reads windows, gives voxels."""

    def reads(self, images: Tensor, places: Places) -> Tensor:
        padded = F.pad(images, [width for width in reversed(self.student.padding) for _ in range(2)])
        return _windows(padded, places, self.student.kernel_size, self.student.stride, self.student.dilation)

    def gives(self, output: Tensor, places: Places) -> Tensor:
        return _windows(output, places, *[(1,) * (output.dim() - 2)] * 3)

    def grid(self, images: Tensor, output: Tensor) -> Sequence[int]:
        return output.shape[2:]

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        self.student.weight.copy_(weight.T.reshape(self.student.weight.shape))
        self.shift(bias)


class _TransposedConvolution(_Layer):
    """Reads voxels, gives windows that do not overlap."""

    def reads(self, images: Tensor, places: Places) -> Tensor:
        return _windows(images, places, *[(1,) * (images.dim() - 2)] * 3)

    def gives(self, output: Tensor, places: Places) -> Tensor:
        kernel = self.student.kernel_size
        return _windows(output, places, kernel, kernel, (1,) * len(kernel))

    def grid(self, images: Tensor, output: Tensor) -> Sequence[int]:
        return images.shape[2:]

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        self.student.weight.copy_(weight.reshape(self.student.weight.shape))
        self.shift(bias.reshape(self.student.out_channels, -1).mean(1))


def _windows(
    tensor: Tensor, places: Places, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Windows of a tensor ``(B, channels, *spatial)`` at places, ``(positions, channels * voxels)``."""
    image, *coordinates = places
    offsets = torch.meshgrid(*(torch.arange(size, device=image.device) for size in kernel), indexing="ij")
    where = [
        coordinate[:, None] * step + spread * offset.flatten()
        for coordinate, step, spread, offset in zip(coordinates, stride, dilation, offsets, strict=True)
    ]
    everywhere = (image[:, None], *where)
    windows = tensor.movedim(1, -1)[everywhere]  # (positions, voxels, channels)
    return windows.transpose(1, 2).flatten(1)


def _layers(teacher: nn.Module, student: nn.Module, images: Tensor, positions: int, logits: bool) -> list[_Layer]:
    """In the order in which they run."""
    ran: list[str] = []
    gave: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: Any, _read: Any, output: Any) -> None:
            ran.append(name)
            gave[name] = output

        return hook

    own, given = dict(student.named_modules()), dict(teacher.named_modules())
    with _hooks(module.register_forward_hook(note(name)) for name, module in own.items()):
        outputs = student(images)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    layers: list[_Layer] = []
    for name, following in zip(ran, [*ran[1:], ""], strict=True):
        kind = _kind(own[name])
        if kind is not None and ran.count(name) == 1:
            is_head = logits and kind is _Convolution and any(gave[name] is output for output in outputs)
            norm = own[following] if _is_norm(own[following]) and ran.count(following) == 1 else None
            layers.append(kind(name, len(layers), given[name], own[name], positions, is_head, norm))
    return layers


def _is_norm(module: nn.Module) -> bool:
    """Whether, in evaluation, it subtracts what it has seen in training."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _kind(layer: Any) -> type[_Layer] | None:
    """How a layer is fitted; ``None``: not."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        fits = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return _Convolution if fits else None
    if isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        apart = layer.stride == layer.kernel_size and {*layer.padding, *layer.output_padding} == {0}
        return _TransposedConvolution if apart and layer.groups == 1 and {*layer.dilation} == {1} else None
    return None


@dataclass(frozen=True)
class _Taught:
    """What the teacher's layer gives for a batch.

    Attributes:
        places: Where.
        rows: ``(positions, numbers)``.
        weights: What each position counts; ``None``: all the same.
    """

    places: Places
    rows: Tensor
    weights: Tensor | None


def _outputs(
    layers: Sequence[_Layer], teacher: nn.Module, batches: Iterable[Tensor], heads: Heads | None
) -> dict[str, list[_Taught]]:
    """Name of a layer -> what it has to give, for each batch. The teacher runs once."""
    outputs: dict[str, list[_Taught]] = {}

    def keep(layer: _Layer) -> Callable[[Any, tuple[Tensor], Tensor], None]:
        def hook(_: Any, read: tuple[Tensor], output: Tensor) -> None:
            kept = outputs.setdefault(layer.name, [])
            places, weights = layer.drawn(layer.grid(read[0], output), output, len(kept), heads)
            kept.append(_Taught(places, layer.gives(layer.taught(output), places), weights))

        return hook

    with _hooks(layer.teacher.register_forward_hook(keep(layer)) for layer in layers):
        for images in batches:
            teacher(images)
    return outputs


def _fit(
    layer: _Layer, images: Iterable[Tensor], taught: Sequence[_Taught], ridge: float, heads: Heads | None
) -> float:
    """Fit one layer.

    Args:
        layer: The layer.
        images: What the student is about to read, a tensor for each batch.
        taught: What it has to give.
        ridge: As for :func:`reconstruct`.
        heads: As there.

    Returns:
        Share of the variance that is explained.
    """
    regression = _Regression(taught[0].rows.shape[1])
    rows = []
    for read, wanted in zip(images, taught, strict=True):
        rows.append(layer.reads(read, wanted.places))
        regression.add(rows[-1], wanted.rows, wanted.weights)
        if not layer.is_head:
            rows.clear()
    weight, bias, explained = regression.solve(ridge)
    if heads is not None and layer.is_head:
        counts = [torch.ones(len(one.rows)) if one.weights is None else one.weights for one in taught]
        logits = torch.cat([one.rows for one in taught])
        weight, bias = fit_head(torch.cat(rows), logits, torch.cat(counts), weight, bias, heads)
    layer.assign(weight, bias)
    return explained


class _Regression:
    """Linear, with intercepts, from sums over batches in float64.

    Args:
        outputs: How many numbers are explained.
    """

    def __init__(self, outputs: int) -> None:
        self._outputs = outputs
        self._products: Tensor | float = 0.0

    def add(self, read: Tensor, given: Tensor, weights: Tensor | None = None) -> None:
        """Positions, ``(positions, numbers)`` each, and what they count."""
        rows = in_double(torch.cat((read, given, torch.ones_like(read[:, :1])), 1))
        weighted = rows if weights is None else rows * weights.to(rows)[:, None]
        self._products = self._products + rows.T @ weighted

    def solve(self, ridge: float) -> tuple[Tensor, Tensor, float]:
        """Map, intercepts, and the share of the variance that is explained."""
        assert isinstance(self._products, Tensor)
        sums = self._products[:-1, -1]
        means = sums / self._products[-1, -1]
        covariance = self._products[:-1, :-1] - torch.outer(sums, means)
        count = len(means) - self._outputs
        read, both, given = covariance[:count, :count], covariance[:count, count:], covariance[count:, count:]
        mean = read.diagonal().mean()
        penalty = ridge * torch.where(mean > 0, mean, torch.ones_like(mean))
        weight = torch.linalg.solve(read + torch.diag(penalty.expand(count)), both)
        variance = given.diagonal().sum()
        residual = variance - 2 * (weight * both).sum() + (weight * (read @ weight)).sum()
        return weight, means[count:] - means[:count] @ weight, float(1 - residual / variance) if variance > 0 else 1.0


@contextmanager
def _hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
