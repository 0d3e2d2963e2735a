"""Making a student from its teacher in three steps: order the channels, take the weights, fit the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nnunet_kd.pruning.heads import Heads, MappedHeads
from nnunet_kd.pruning.ordering import sort_channels
from nnunet_kd.pruning.reconstruction import reconstruct
from nnunet_kd.pruning.selection import selected_weights


@dataclass(frozen=True)
class Pruned:
    """The outcome of :func:`prune`.

    Attributes:
        reordered: The number of the teacher's channel groups that were reordered.
        refusal: The reason why the teacher's channels could not be traced, so that the student has every r-th channel
            instead of the best; ``None`` otherwise.
        explained: The name of every fitted layer, in running order -> the share of the variance of the teacher's output
            that it explains.
    """

    reordered: int
    refusal: str | None
    explained: dict[str, float]


def prune(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor | Sequence[Tensor],
    *,
    heads: Heads | None = None,
    mapped: MappedHeads | None = None,
    teacher_images: Sequence[Tensor] | None = None,
    reorder: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Pruned:
    """Set a student's weights so that it approximates its teacher, without training.

    Example::

        teacher, student = UNet(width=32), UNet(width=8)
        teacher.load_state_dict(torch.load("teacher.pth"))
        prune(teacher, student, images, heads="classes")

    Args:
        teacher: A segmentation network that maps images to logits, or to a list of them. With ``reorder`` its channels
            are reordered in place, which changes its outputs by rounding only.
        student: The same architecture with other widths, on the teacher's device. Its weights are replaced.
        images: ``(B, channels, *spatial)`` with two or three spatial axes, or a sequence of such batches of one size.
            The student runs on all of them at once.
        heads: Whether the outputs are logits of exclusive ``"classes"`` or of ``"regions"``. They are fitted to the
            teacher's probabilities then; ``None`` fits them by least squares, which can lose rare classes.
        mapped: How the student's classes or regions follow from the teacher's; ``None`` if they are the same.
        teacher_images: The images as the teacher sees them, batch by batch, if it sees them otherwise: they can have
            other intensities or another resolution, but must show the same. ``None`` for the student's.
        reorder: Whether the student gets the channels with which the teacher's layers lose least, instead of every
            r-th.
        progress: The function that is called after every step with the share of the work that is done.

    Raises:
        ValueError: If the student's layers or kernels differ from the teacher's, or its classes without ``mapped``, or
            if it is wider.
    """
    batches = [images] if isinstance(images, Tensor) else images
    layers = sum(isinstance(module, _ConvNd) for module in student.modules())
    step = _counted(progress, (2 if reorder else 1) * len(batches) + layers)
    seen = batches if teacher_images is None else teacher_images
    selected_weights(teacher, student, mapped)  # raises before the teacher is changed
    reordered, refusal = 0, None
    training = teacher.training
    teacher.eval()
    try:
        if reorder:
            try:
                reordered = sort_channels(teacher, student, seen, mapped=mapped, step=step)
            except ValueError as error:
                refusal = str(error)
        student.load_state_dict(selected_weights(teacher, student, mapped))
        explained = reconstruct(teacher, student, batches, heads=heads, mapped=mapped, teacher_batches=seen, step=step)
        return Pruned(reordered, refusal, explained)
    finally:
        teacher.train(training)


def _counted(progress: Callable[[float], None] | None, steps: int) -> Callable[[], None]:
    """Return a function that counts its calls and reports their share of all steps."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done / steps)

    return step
