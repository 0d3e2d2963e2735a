"""Compare Mobile U-Net with the plain student of the same plans on the CPU, in one run.

    python benchmarks/mobile_unet.py [-r 4] [--patch 64 160 160] [--classes 16] [--threads 1] [--repeats 3]

Both networks are made as `nnunet_kd plan` makes them, from nnU-Net's default network for a CT with voxels of 2 x 0.7 x
0.7 mm, and have random weights. "Activations" is what a training step on one patch keeps for its gradient. The seconds
are processor time for a patch, in the engines of `nnunet_kd predict` and in PyTorch, on which other programs have
little influence; the candidates take turns, and the least time of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_kd.deploy.onnx_network import export_network
from nnunet_kd.evaluation.cost import network_cost
from nnunet_kd.nnunet.default_network import default_network
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.runtime.engines import ENGINES, open_engine

SPACING = (2.0, 0.7, 0.7)  # mm


def main() -> None:
    """Print the costs of both networks."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-r", type=float, default=4)
    options.add_argument("--patch", type=int, nargs=3, default=[64, 160, 160])
    options.add_argument("--classes", type=int, default=16)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    architecture, patch = default_network(SPACING, chosen.patch)
    configuration = {"architecture": architecture, "patch_size": patch, "spacing": list(SPACING)}
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}
    print(f"r = {chosen.r:g}, patch {patch}, {chosen.classes} classes, {chosen.threads} threads")
    candidates: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in (("plain", None), ("Mobile U-Net", "mobile_unet")):
            student = student_plans(plans, chosen.r, network=network)["configurations"]["3d_fullres"]["architecture"]
            with torch.device("meta"):
                cost = network_cost(built(student, chosen.classes), 1, patch)
            print(
                f"{name}: {cost.parameters} parameters, {cost.flops / 1e9:.1f} GFLOPs, activations "
                f"{cost.activation_bytes / 2**30:.2f} GiB"
            )
            candidates |= engines(name, built(student, chosen.classes).eval(), patch, chosen.threads, Path(folder))
        least = dict.fromkeys(candidates, float("inf"))
        for _ in range(chosen.repeats):
            for name, run in candidates.items():
                start = time.process_time()
                run()
                least[name] = min(least[name], time.process_time() - start)
                print(f"{name}: {least[name]:.2f} s", flush=True)


def built(architecture: dict, classes: int) -> nn.Module:
    """Build a network as nnU-Net does, without deep supervision."""
    keywords, imported = architecture["arch_kwargs"], architecture["_kw_requires_import"]
    return get_network_from_plans(
        architecture["network_class_name"], keywords, imported, 1, classes, deep_supervision=False
    )


def engines(
    name: str, network: nn.Module, patch: list[int], threads: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """Return functions that compute a patch in PyTorch and in the engines of the runtime."""
    file, shape = folder / f"{name}.onnx", (1, 1, *patch)
    export_network(network, 1, patch, None, file)
    images = torch.randn(shape)
    loaded = {engine: open_engine(engine, file, shape, threads) for engine in ENGINES}

    def torch_run() -> object:
        with torch.inference_mode():
            return network(images)

    def run(engine: str) -> Callable[[], object]:
        return lambda: loaded[engine](images.numpy())

    return {f"{name}, PyTorch": torch_run, **{f"{name}, {engine}": run(engine) for engine in ENGINES}}


if __name__ == "__main__":
    main()
