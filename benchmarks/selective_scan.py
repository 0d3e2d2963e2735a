# ruff: noqa: N803, N806  A, B and C are the paper's names
"""Time the selective scan beside a loop over tokens, forward and backward, and measure its memory.

    python benchmarks/selective_scan.py [--channels 32 192 768] [--lengths 256 1024 4096] [--repeats 5] [--threads 2]

The number of channels counts all four directions of one block: VM-UNet's first stage has 768, with 4096 tokens at
256 x 256, and 192 at a quarter of the paper's widths. The script checks that all scans give the same value. ``loop``
computes each token from the one before, as in the equations. ``ahead`` discretises the whole sequence first, so that
its loop only multiplies and adds, and keeps four times as much. Neither indexes into sequences, because the backward
pass would be quadratic in their length. The wider the state of a token, the smaller the overhead of a loop.

The memory is the peak of a forward and a backward pass beyond what the process held once the inputs existed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from timing import medians
from torch import Tensor

from nnunet_kd.networks.selective_scan import chunked_scan

GROUPS, STATE = 4, 16
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def loop_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute one token after the other."""
    batch, _, length = u.shape
    per_group = (batch, GROUPS, -1, length)
    rates = A.view(GROUPS, -1, STATE)
    h = u.new_zeros(batch, *rates.shape)
    sequences = ((delta * u).view(per_group), delta.view(per_group), B, C)
    outputs = []
    for drive, step, b, c in zip(*(x.unbind(-1) for x in sequences), strict=True):
        h = torch.exp(step[..., None] * rates) * h + drive[..., None] * b[:, :, None]
        outputs.append((h @ c[..., None])[..., 0])
    return torch.stack(outputs, -1).view(u.shape)


def ahead_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute everything but the recurrence for all tokens at once."""
    batch, _, length = u.shape
    step, drive = (x.permute(2, 0, 1).reshape(length, batch, GROUPS, -1, 1) for x in (delta, delta * u))
    b, c = (x.permute(3, 0, 1, 2) for x in (B, C))
    decays = torch.exp(step * A.view(GROUPS, -1, STATE)).unbind(0)
    h = u.new_zeros(decays[0].shape)
    states = []
    for decay, added in zip(decays, (drive * b[:, :, :, None]).unbind(0), strict=True):
        h = torch.addcmul(added, decay, h)
        states.append(h)
    return (torch.stack(states) @ c[..., None])[..., 0].permute(1, 2, 3, 0).reshape(u.shape)


SCANS: dict[str, Scan] = {"ours": chunked_scan, "loop": loop_scan, "ahead": ahead_scan}


def inputs(channels: int, length: int) -> list[Tensor]:
    """Return u, delta, A, B and C of one image, with the step sizes and decays that Mamba starts from."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, channels, length, generator=generator)
    delta = 1e-3 * 100 ** torch.rand(1, channels, length, generator=generator)
    A = -torch.arange(1.0, STATE + 1).repeat(channels, 1)
    B, C = torch.randn(2, 1, GROUPS, STATE, length, generator=generator)
    return [x.requires_grad_() for x in (u, delta, A, B, C)]


def step(scan: Scan, given: list[Tensor], weights: Tensor) -> Callable[[], list[Tensor]]:
    """Return a function that runs a forward and a backward pass, and returns the result and all gradients."""

    def run() -> list[Tensor]:
        y = scan(*given)
        return [y.detach(), *torch.autograd.grad(y, given, weights)]

    return run


def peak(name: str, channels: int, length: int, threads: int) -> int:
    """Return the peak bytes of a forward and a backward pass; call it in a process of its own."""
    from nnunet_kd.evaluation.measure import peak_memory, start_of_peak

    torch.set_num_threads(threads)
    step(SCANS[name], inputs(channels, 64), torch.ones(1, channels, 64))()  # loads what PyTorch loads at first use
    run = step(SCANS[name], inputs(channels, length), torch.ones(1, channels, length))
    before = start_of_peak("cpu")
    run()
    return peak_memory("cpu") - before


def main() -> None:
    """Print seconds, ratios and memory."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--channels", type=int, nargs="+", default=[32, 192, 768], help="multiples of 4")
    options.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"{chosen.threads} threads, batch 1, state {STATE}, forward and backward")
    print(f"{'channels':<10}{'length':>7}{'ours':>9}{'loop':>9}{'ahead':>9}{'loop/ours':>11}{'ahead/ours':>12}")
    for channels in chosen.channels:
        for length in chosen.lengths:
            given = inputs(channels, length)
            weights = torch.randn(1, channels, length, generator=torch.Generator().manual_seed(1))
            runs = {name: step(scan, given, weights) for name, scan in SCANS.items()}
            ours = runs["ours"]()
            for other in ("loop", "ahead"):
                for a, b in zip(ours, runs[other](), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
            seconds = medians(runs, chosen.repeats, warm_up=1)
            print(
                f"{channels:<10}{length:>7}"
                + "".join(f"{seconds[name]:>9.3f}" for name in SCANS)
                + f"{seconds['loop'] / seconds['ours']:>11.1f}{seconds['ahead'] / seconds['ours']:>12.1f}",
                flush=True,
            )

    channels = chosen.channels[0]
    print(
        f"\nmemory, {channels} channels: MB, and bytes per channel and token\n{'length':<10}"
        + "".join(f"{n:>16}" for n in SCANS)
    )
    for length in (4096, 8192, 16384, 32768):
        line = f"{length:<10}"
        for name in SCANS:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                taken = pool.submit(peak, name, channels, length, chosen.threads).result()
            line += f"{taken / 2**20:>9.0f}{taken / channels / length:>7.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
