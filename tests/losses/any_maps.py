"""Tensors of every kind a training could come to, and what a loss must do with them."""

import traceback
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st

import nnunet_kd

PACKAGE = str(Path(nnunet_kd.__file__).parent)

examples = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # to explain a failure takes minutes
)
fewer_examples = settings(examples, max_examples=60)

DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
BATCHES, CHANNELS, SEEDS = st.integers(1, 3), st.integers(1, 6), st.integers(0, 99)
DIMS = st.integers(2, 3)
GRIDS = {dim: st.tuples(*[st.integers(1, 9)] * dim) for dim in (2, 3)}
SCALES = st.sampled_from([0.0, 1e-30, 1e-22, 1e-10, 1.0, 1.0, 1e4, 6e4, 6e4, 1e30])
KINDS = st.sampled_from(["noise", "constant", "negative", "one number", "dead voxels"])
WAVELETS = st.sampled_from(["haar", "db2", "db4", "sym4", "coif2", "db8"])
TEMPERATURES = st.sampled_from([0.001, 0.5, 1, 3.0, 4.0, 20.0, 1000])
SHARES = st.sampled_from([None, 0.0, 0.1, 0.6, 1.0])


def generator(seed):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Maps:
    """What a tensor is made from: short to print."""

    shape: tuple
    dtype: torch.dtype
    kind: str
    scale: float
    seed: int

    def tensor(self):
        numbers = torch.randn(self.shape, dtype=torch.float64, generator=generator(self.seed))
        if self.kind == "constant":
            numbers = torch.ones_like(numbers)
        elif self.kind == "negative":
            numbers = -numbers.abs()
        elif self.kind == "one number":
            numbers.flatten()[1:] = 0
        elif self.kind == "dead voxels":  # no channel active, as behind a ReLU
            numbers = numbers * (numbers[:, :1] > 0)
        largest = torch.finfo(self.dtype).max
        return (self.scale * numbers).clamp(-largest, largest).to(self.dtype)


def maps(shape):
    return st.builds(Maps, st.just(shape), DTYPES, KINDS, SCALES, SEEDS)


@st.composite
def pairs(draw, same_width=False):
    """Student and teacher on one grid, each of its own type and size; at times the same numbers."""
    batch, grid, width = draw(BATCHES), draw(GRIDS[draw(DIMS)]), draw(CHANNELS)
    student = draw(maps((batch, width, *grid)))
    if draw(st.integers(0, 4)) == 4:
        return student, student
    return student, draw(maps((batch, width if same_width else draw(CHANNELS), *grid)))


def precise(*made_from):
    """The type a loss computes in."""
    return reduce(torch.promote_types, [one.dtype for one in made_from], torch.float32)


def stage(loss, pair, bare, single):
    """Student and teacher, and an adapter of float32, as it is trained, or of the type the loss computes in."""
    student, teacher = (one.tensor() for one in pair)
    if bare and student.shape[1] == teacher.shape[1]:
        return student, teacher, None
    torch.manual_seed(0)
    projection = loss.projection(student.shape[1], teacher.shape[1], student.ndim - 2)
    return student, teacher, projection.to(torch.float32 if single else precise(*pair))


def parameters_of(module):
    return [] if module is None else list(module.parameters())


def check(loss, learners, parameters=(), others=(), squares=False):
    """``loss(*learners)`` is finite with finite gradients.

    A half-precision gradient is float32's, rounded: infinite only where it is beyond the type. A loss of ``squares``
    of numbers beyond 1e15 may be infinite itself, and its gradients anything, unless all is float64. None is NaN.
    """
    values, gradients = [], []
    for half in (False, True):
        leaves = [x if half else x.to(torch.promote_types(x.dtype, torch.float32)) for x in learners]
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(*leaves)
        assert value.shape == () and value.dtype == precise(*learners, *others) and not value.isnan()
        found = torch.autograd.grad(value, [*leaves, *parameters], allow_unused=True)
        values.append(value.detach())
        gradients.append([gradient for gradient in found if gradient is not None])
    assert values[0] == values[1] and gradients[0]
    largest = max(tensor.abs().max() for tensor in (*learners, *others))
    double = all(tensor.dtype == torch.float64 for tensor in (*learners, *others, *parameters))
    if squares and largest > 1e15 and not double:
        return
    assert values[0].isfinite()
    for single, half in zip(*gradients, strict=True):
        assert single.isfinite().all()
        assert torch.equal(single.to(half.dtype), half)


def some(shape, share):
    """Voxels that count: not told, none, all or some."""
    return None if share is None else torch.rand((shape[0], 1, *shape[2:]), generator=generator(0)) < share


def finite_or_refused(function, *arguments, **keywords):
    """The result is finite after all, or there is one sentence, of this package and no other."""
    try:
        value = function(*arguments, **keywords)
    except ValueError as error:
        sentence = str(error)
        assert type(error) is ValueError and sentence and "\n" not in sentence and "zip()" not in sentence
        assert traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE), sentence
    else:
        assert all(one.isfinite().all() for one in (value if isinstance(value, tuple) else (value,)))
