"""A complete training in several processes: nnU-Net's own ``run_ddp`` with gloo on the CPU."""

import importlib
import json
import os

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from tests.conftest import SHORT
from tests.killing import fork_from_here, preloaded


def worker(
    rank: int, trainer: str, processes: int, out: str, resume: bool, stop_at: int | None, environment: dict[str, str]
) -> None:
    """Run one of several processes: train until the given epoch, or to the end and validate."""
    os.environ.update(environment)
    fork_from_here()
    trainer_file = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    running = importlib.import_module("nnunetv2.run.run_training")
    torch.set_num_threads(1)
    wrapper, make, trainers = trainer_file.DDP, running.get_trainer_from_args, []

    def on_cpu(*arguments, **options):
        made = make(*arguments, **options)
        made.device, made.grad_scaler = torch.device("cpu"), None
        begin = made.on_train_epoch_start

        def begin_or_stop():
            if made.current_epoch == stop_at:
                raise SystemExit
            begin()

        made.on_train_epoch_start = begin_or_stop
        trainers.append(made)
        return made

    with pytest.MonkeyPatch.context() as patch:
        meeting = f"file://{out}/meeting_{processes}"
        join = dist.init_process_group
        patch.setattr(running, "setup_ddp", lambda rank, size: join("gloo", meeting, rank=rank, world_size=size))
        patch.setattr(torch.cuda, "set_device", lambda device: None)
        patch.setattr(trainer_file, "DDP", lambda network, device_ids: wrapper(network))
        patch.setattr(running, "get_trainer_from_args", on_cpu)
        patch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *_: None)
        if rank > 0:  # any call would raise
            patch.setattr("nnunet_kd.training.resumable.save_atomically", None)
        options = {"disable_checkpointing": False, "c": resume, "val": False, "pretrained_weights": None}
        try:
            running.run_ddp(
                rank,
                *("598", "3d_fullres", 0, trainer, "shared"),
                **options,
                npz=False,
                val_with_best=False,
                world_size=processes,
            )
        except SystemExit:
            dist.destroy_process_group()
    weights = {name: weight.detach() for name, weight in trainers[0].trained().state_dict().items()}
    torch.save((trainers[0].batch_size, weights), f"{out}/{processes}_{rank}.pth")


def in_processes(trainer, count, workspace, resume, stop_at):
    """Batch size of every rank; all have the same weights."""
    out = str(workspace.root)
    preloaded()  # imports the slow modules once
    arguments = (trainer, count, out, resume, stop_at, workspace.environment())
    multiprocessing.start_processes(worker, arguments, nprocs=count, start_method="forkserver")
    results = [torch.load(f"{out}/{count}_{rank}.pth") for rank in range(count)]
    for _, weights in results[1:]:
        torch.testing.assert_close(weights, results[0][1], rtol=0, atol=0)
    return [size for size, _ in results]


def saved(workspace, trainer, name):
    return torch.load(folder_of(workspace, trainer) / f"checkpoint_{name}.pth", weights_only=False)


def folder_of(workspace, trainer):
    return workspace.results / f"{trainer}__shared__3d_fullres" / "fold_0"


def train_and_resume(workspace, counts: tuple[int, int], trainer: str, term: str, method: dict) -> None:
    """Train in some processes, interrupt, resume in another number of processes, and validate."""
    training = {**SHORT, "num_epochs": 3, "ema_decay": 0.5, "initial_weights": "pruned"}
    plans = workspace.plans("shared", training=training, teacher={"plans": "nnUNetPlans"}, method=method)
    plans["configurations"]["3d_fullres"]["batch_size"] = 4
    (workspace.preprocessed / "shared.json").write_text(json.dumps(plans))
    before, after = counts
    assert in_processes(trainer, before, workspace, resume=False, stop_at=2) == [4 // before] * before
    first = saved(workspace, trainer, "latest")
    assert first["current_epoch"] == 2 and len(first["logging"][term]) == 2
    assert first["network_weights"].keys() and not any(key.startswith("module") for key in first["network_weights"])

    assert in_processes(trainer, after, workspace, resume=True, stop_at=None) == [4 // after] * after
    last = saved(workspace, trainer, "final")
    for name in ("train_losses", term, "val_losses", "ema_fg_dice", "skipped_steps"):
        assert len(last["logging"][name]) == 3 and last["logging"][name][:2] == first["logging"][name]
    validation = folder_of(workspace, trainer) / "validation"
    assert (validation / "summary.json").is_file() and len(list(validation.glob("*.nii.gz"))) == 2
