"""Two processes (gloo, CPU) with half a batch each compute the gradients of one with the whole batch."""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from tests.conftest import DATASET, FOLDERS, SHORT, Workspace, make_trainer
from tests.killing import fork_from_here, preloaded
from tests.training.stored_labels import store_of

# trainer, method, epoch
CASES = {
    "NoKD": ("NoKD", {}, 0),
    "DCD": ("DCD", {"ramp": None}, 0),
    "DCD frozen": ("DCD", {"ramp": None, "transform": "published", "projection": "frozen", "weight": 1}, 0),
    "DCD before its ramp": ("DCD", {"ramp": [1, 0]}, 0),
    "FitNets": ("FitNets", {}, 0),
    "LogitsKD": ("LogitsKD", {}, 0),
    "CWD": ("CWD", {}, 0),
    "IFVD": ("IFVD", {"weight": 1}, 0),
    "DPRD": ("DPRD", {"ramp": None}, 0),
    "DPRD learned": ("DPRD", {"ramp": None, "projection": "learned"}, 0),
    "ReCoKD": ("ReCoKD", {"ramp": None}, 0),
    "DualSelfKD": ("DualSelfKD", {}, 0),
    "SoftKD": ("SoftKD", {}, 0),
    "FreeKD tuning": ("FreeKD", {"prompt_epochs": 1}, 0),
    "RKD": ("RKD", {}, 0),
    "CIRKD": ("CIRKD", {"pixels": 512, "pixel_memory": 1100}, 0),  # nothing is left to random numbers
    "SKD": ("SKD", {}, 0),
    "FreeKD": ("FreeKD", {"prompt_epochs": 1}, 1),
    "mixed": ("KD", {"terms": [{"name": "dcd", "ramp": None}, {"name": "logits"}, {"name": "dual_self"}]}, 0),
}
SAID = {"DCD frozen": 1, "mixed": 3}  # lines about the shares of the terms
WITHOUT_ADAPTERS = ("NoKD", "LogitsKD", "CWD", "IFVD", "SoftKD", "DCD frozen")

pytestmark = pytest.mark.xdist_group("ddp")  # all tests use the same pair of processes

CONFIGURATIONS = ("3d_fullres", "2d")  # Dice per case, Dice over the batch
PAIRS = [*((case, "3d_fullres") for case in CASES), *((case, "2d") for case in ("NoKD", "DualSelfKD", "mixed"))]


def gradients(
    root: Path, case: str, configuration: str, rank: int, processes: int
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the gradients of student and adapters after one step on this process's share of a batch of two.

    The gradients are in double precision where nnU-Net allows it, so that rounding does not hide a difference. The
    lines are those that the log says about the shares of the terms, in the cases of :data:`SAID`.
    """
    torch.set_default_dtype(torch.float64)
    try:
        return _gradients(root, case, configuration, rank, processes)
    finally:
        torch.set_default_dtype(torch.float32)


def _gradients(
    root: Path, case: str, configuration: str, rank: int, processes: int
) -> tuple[dict[str, torch.Tensor], list[str]]:
    name, method, epoch = CASES[case]
    kind = getattr(importlib.import_module(f"nnunet_kd.trainers.nnUNetTrainer{name}"), f"nnUNetTrainer{name}")
    workspace = Workspace(root)
    plans = workspace.plans(
        f"plans_{processes}_{rank}", training=SHORT, method=method, teacher={"plans": "nnUNetPlans"}
    )
    trainer = make_trainer(kind, plans, workspace, configuration=configuration)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None  # nnU-Net assumes that DDP runs on CUDA
    trainer.initialize()
    weights = trainer.loss.weight_factors
    trainer.loss.weight_factors = [*weights[:-1], 1e-6]  # as in nnU-Net under DDP without compilation
    trainer.current_epoch = epoch
    trainer.network.train()
    said: list[str] = []
    trainer.print_to_log_file = lambda *words, **_: said.append(" ".join(map(str, words)))
    if case in SAID:
        trainer.on_train_epoch_start()

    generator = torch.Generator().manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    images = torch.randn(2, 3, *patch, generator=generator)
    if trainer.sources.soft_labels is not None:
        stored = torch.randn(2, 3, *patch, generator=generator)
        images = torch.cat([images, stored, torch.ones(2, 1, *patch)], 1)
    target = torch.randint(0, 3, (2, 1, *patch), generator=generator).double()
    scales = [[int(size * factor) for size, factor in zip(patch, s)] for s in trainer._get_deep_supervision_scales()]  # noqa: B905
    targets = [torch.nn.functional.interpolate(target, scale, mode="nearest-exact") for scale in scales]
    share = slice(rank, rank + 1) if processes > 1 else slice(None)
    trainer.optimizer.step = lambda: None
    trainer.train_step({"data": images[share], "target": [scale[share] for scale in targets]})
    joint = trainer.trained()
    lines = [line for line in said if "contributes" in line]
    return {n: p.grad for n, p in joint.named_parameters() if p.grad is not None}, lines


def worker(rank: int, root: str, out: str) -> None:
    """Run one of the two processes."""
    fork_from_here()
    os.environ.update({name: f"{root}/{name}" for name in FOLDERS})
    trainer_file = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    wrapper = trainer_file.DDP
    trainer_file.DDP = lambda network, device_ids: wrapper(network)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {pair: gradients(Path(root), *pair, rank, 2) for pair in PAIRS}
    torch.save(results, f"{out}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def in_two_processes(trained_workspace, tmp_path_factory):
    """The gradients of both ranks, and the folder in which they worked."""
    import shutil

    root = tmp_path_factory.mktemp("ddp")
    shutil.copytree(trained_workspace.root, root, dirs_exist_ok=True)
    out = tmp_path_factory.mktemp("gradients")
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(root / name))
        for configuration in CONFIGURATIONS:
            store_of(Workspace(root), configuration)
        preloaded()
        multiprocessing.start_processes(worker, (str(root), str(out)), nprocs=2, start_method="forkserver")
        yield root, [torch.load(out / f"{rank}.pth") for rank in range(2)]


def percent(line: str) -> float:
    return float(line.split(" contributes ")[1].split(" %")[0])


@pytest.mark.skipif(not dist.is_gloo_available() or sys.platform == "win32", reason="needs gloo")
@pytest.mark.parametrize(("case", "configuration"), PAIRS)
def test_gradients_are_those_of_the_joint_batch(in_two_processes, case, configuration):
    root, (first, second) = in_two_processes
    assert (root / "nnUNet_results" / DATASET).is_dir()
    expected, lines = gradients(root, case, configuration, 0, 1)
    ours, said = first[case, configuration]
    assert len(said) == len(lines) == SAID.get(case, 0) and said == second[case, configuration][1]
    for line, other in zip(said, lines, strict=True):
        assert percent(line) == pytest.approx(percent(other), rel=1e-2)  # three digits are printed
    assert ours.keys() == expected.keys()
    adapters = [name for name in ours if name.startswith("adapters")]
    assert bool(adapters) == (case not in (*WITHOUT_ADAPTERS, "RKD", "SKD", "DPRD"))
    assert not any("tokens" in name for name in adapters) or case == "FreeKD tuning"
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], second[case, configuration][0][name], rtol=0, atol=0)
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
