"""Time the DCD loss beside other ways to compute it, forward and backward, including the projection phi.

    python benchmarks/dcd_loss.py [--repeats 7] [--levels 3]

``dense`` transcribes equations 2, 6 and 7 literally: it computes every band of student and teacher by a strided
correlation with one dense 3-D filter (the outer product of three 1-D filters, wrapped around at the borders, which is
our basis on even axes), masks the bands, inverts them by the transposed correlation, and takes the mean squared error.
The script checks that it gives the same value. ``ptwt`` does the same with that package's separable 3-D transform and
zero padding (another basis at the borders, hence another value). ``plain`` is the MSE of the features without a
transform.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import ptwt
import pywt
import torch
import torch.nn.functional as F
from timing import medians
from torch import Tensor, nn

from nnunet_kd.losses import DCDLoss
from nnunet_kd.wavelets import band_names, select_bands

SHAPES = [(16, 64, 64), (32, 128, 32), (64, 256, 16)]
KEEP = select_bands("directional", 3)


def dense_filters(wavelet: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the eight band filters, ``(8, 1, taps, taps, taps)``, in the order of ``band_names(3)``."""
    found = pywt.Wavelet(wavelet)
    one = {letter: torch.tensor(taps[::-1], dtype=dtype) for letter, taps in (("a", found.dec_lo), ("d", found.dec_hi))}
    return torch.stack([torch.einsum("i,j,k->ijk", *(one[letter] for letter in name)) for name in band_names(3)])[
        :, None
    ]


def dense_projection(x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return P_D x of one level, and the approximation that the next level starts from."""
    batch, channels, *size = x.shape
    taps = filters.shape[-1]
    before, after = taps // 2 - 1, taps // 2 - 1
    wrapped = x.reshape(-1, 1, *size)
    while any(n < before for n in size):  # an axis shorter than the filter wraps around more than once
        raise ValueError("the dense transcription is written for axes at least as long as half the filter")
    wrapped = F.pad(wrapped, (before, after) * 3, mode="circular")
    bands = F.conv3d(wrapped, filters, stride=2)
    mask = torch.tensor([name in KEEP for name in band_names(3)], dtype=x.dtype).view(1, -1, 1, 1, 1)
    spread = F.conv_transpose3d(bands * mask, filters, stride=2)
    for axis, n in zip((2, 3, 4), size, strict=True):  # fold back what lies beyond the borders
        positions = (torch.arange(spread.shape[axis]) - before) % n
        folded = spread.new_zeros(*spread.shape[:axis], n, *spread.shape[axis + 1 :])
        spread = folded.index_add(axis, positions, spread)
    coarse = [n // 2 for n in size]
    return spread.reshape(x.shape), bands[:, 0].reshape(batch, channels, *coarse)


def dense_loss(student: Tensor, teacher: Tensor, levels: int, filters: Tensor) -> Tensor:
    """Return the mean over levels of the mean squared difference of the projections."""
    losses = []
    for _ in range(levels):
        (details_s, student), (details_t, teacher) = (dense_projection(x, filters) for x in (student, teacher))
        losses.append(F.mse_loss(details_s, details_t))
    return torch.stack(losses).mean()


def ptwt_loss(student: Tensor, teacher: Tensor, levels: int) -> Tensor:
    """Return the same as ``dense_loss`` with ptwt's transform."""
    losses = []
    for _ in range(levels):
        sides = []
        for x in (student, teacher):
            approximation, details = ptwt.wavedec3(x, "db4", level=1, mode="zero")
            kept = {name: band if name in KEEP else torch.zeros_like(band) for name, band in details.items()}
            sides.append((ptwt.waverec3((torch.zeros_like(approximation), kept), "db4"), approximation))
        (details_s, student), (details_t, teacher) = sides
        losses.append(F.mse_loss(details_s, details_t))
    return torch.stack(losses).mean()


def main() -> None:
    """Print the seconds and ratios for every shape."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--levels", type=int, default=3)
    options.add_argument("--slow-repeats", type=int, default=3, help="repeats of ptwt and the dense transcription")
    chosen = options.parse_args()
    torch.manual_seed(0)
    filters = dense_filters("db4")
    loss = DCDLoss(levels=chosen.levels)
    print(f"{torch.get_num_threads()} threads, {chosen.levels} levels, db4, forward and backward")
    print(f"{'B, C_S -> C_T, size':<24}{'ours':>9}{'plain':>9}{'ptwt':>9}{'dense':>9}"
          f"{'ours/plain':>12}{'ptwt/ours':>11}{'dense/ours':>12}")  # fmt: skip
    for narrow, wide, size in SHAPES:
        student = torch.randn(1, narrow, size, size, size, requires_grad=True)
        teacher = torch.randn(1, wide, size, size, size)
        phi = nn.Conv3d(narrow, wide, 1, bias=False)

        def step(value: Callable[[], Tensor], phi: nn.Module = phi, student: Tensor = student) -> Callable[[], Tensor]:
            def run() -> Tensor:
                phi.zero_grad()
                student.grad = None
                result = value()
                result.backward()
                return result.detach()

            return run

        ours = step(lambda: loss(student, teacher, phi))  # noqa: B023  called within this iteration
        plain = step(lambda: F.mse_loss(phi(student), teacher))  # noqa: B023
        by_ptwt = step(lambda: ptwt_loss(phi(student), teacher, chosen.levels))  # noqa: B023
        dense = step(lambda: dense_loss(phi(student), teacher, chosen.levels, filters))  # noqa: B023
        torch.testing.assert_close(ours(), dense(), rtol=1e-4, atol=0)
        fast = medians({"ours": ours, "plain": plain}, chosen.repeats)
        slow = medians({"ours": ours, "ptwt": by_ptwt, "dense": dense}, chosen.slow_repeats, warm_up=1)
        print(
            f"{f'1, {narrow} -> {wide}, {size}^3':<24}{fast['ours']:>9.4f}{fast['plain']:>9.4f}{slow['ptwt']:>9.3f}"
            f"{slow['dense']:>9.3f}{fast['ours'] / fast['plain']:>12.2f}{slow['ptwt'] / slow['ours']:>11.1f}"
            f"{slow['dense'] / slow['ours']:>12.1f}"
        )


if __name__ == "__main__":
    main()
