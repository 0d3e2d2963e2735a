"""Compiled students under DDP, with NCCL and nnU-Net's synchronized batch normalization."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from nnunet_kd.training.kd_sam.phases import DECODER, EncoderProgress
from tests.conftest import SHORT
from tests.gpu.agreement import cosine
from tests.gpu.commands import environment, run
from tests.gpu.compiling import describe_compilation, nnunet_compiles
from tests.gpu.training import make
from tests.training import small_kd_sam
from tests.training.methods import trainer_class
from tests.training.several_processes import folder_of, in_processes, saved

DDP = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP"
TEACHER = {"plans": "nnUNetPlans"}


@pytest.fixture
def one_process(place, request, tmp_path, monkeypatch):
    """Join a group of one process, whose buckets hold a quarter of what learns, so that the forward pass is split."""
    devices = {} if place.fake else {"device_ids": [0]}

    def in_buckets(network, device_ids):
        learning = network._orig_mod.decoder if decoder_alone else network
        size = sum(parameter.nbytes for parameter in learning.parameters()) // 4
        monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", size)
        return DistributedDataParallel(network, bucket_cap_mb=size / 2**20, **devices)

    monkeypatch.setattr(DDP, in_buckets)
    if place.fake:  # synchronized normalization takes tensors of a GPU alone, even in one process
        monkeypatch.setattr(DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None)
        monkeypatch.setattr(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)
        monkeypatch.setattr(nn.SyncBatchNorm, "_check_input_dim", lambda *_: None)
    decoder_alone = request.node.callspec.params["name"] == "KD-SAM's decoder"
    yield lambda: dist.init_process_group(
        place.size("nccl", "gloo"), init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    if dist.is_initialized():
        dist.destroy_process_group()


def begun(place, workspace, sam, name, plans_name):
    """A trainer that has begun, in a phase of KD-SAM or with DCD."""
    if name == "DCD":
        plans = workspace.plans(plans_name, training=SHORT, method={"ramp": None}, teacher=TEACHER)
        trainer = make(place, trainer_class("DCD"), plans, workspace)
    else:
        plans = small_kd_sam.plans_for(workspace, sam, name=plans_name)
        trainer = make(place, trainer_class("KDSAM"), plans, workspace, "2d")
    if place.fake:
        trainer.device = place.device  # under DDP nnU-Net takes it to be a GPU
    trainer.grad_scaler = torch.amp.GradScaler(place.device.type, init_scale=2.0**8)  # so that no step is skipped
    trainer.on_train_start()
    if name == "KD-SAM's decoder":
        trainer.progress = EncoderProgress(end=0)
        trainer.trained().learns = DECODER
    trainer.network.train()
    return trainer


def gradients(trainer, batch):
    """The loss, and the gradients of a step that is not taken."""
    trainer.optimizer.step = lambda: None
    values = trainer.train_step(batch)
    assert not values["skipped_steps"]
    named = trainer.trained().named_parameters()
    return float(values["loss"]), {name: one.grad.clone() for name, one in named if one.grad is not None}


@pytest.mark.parametrize("name", ["DCD", "KD-SAM's encoder", "KD-SAM's decoder"])
def test_a_step_of_one_process(place, figures, workspace, sam, one_process, name):
    """The step that nnU-Net's DDP takes with a compiled network has the gradients of an eager one without DDP."""
    alone = begun(place, workspace, sam, name, "alone")
    batch = next(alone.dataloader_train)
    expected_loss, expected = gradients(alone, batch)
    one_process()
    with nnunet_compiles(place):
        trainer = begun(place, workspace, sam, name, "together")
        assert trainer.is_ddp and isinstance(trainer.network, DistributedDataParallel)
        trainer.trained().student.load_state_dict(alone.trained().student.state_dict())
        trainer.trained().adapters.load_state_dict(alone.trained().adapters.state_dict())
        synchronized = sum(isinstance(one, nn.SyncBatchNorm) for one in trainer.network.modules())
        assert (synchronized > 0) == (name != "DCD")
        loss, found = gradients(trainer, batch)
        figures.update(describe_compilation())
        figures["parts"] = counters["aot_autograd"]["total"]
    figures["synchronized layers"] = synchronized
    figures["loss error"] = abs(loss / expected_loss - 1)
    figures["gradient cosine"] = cosine([found[key] for key in expected], list(expected.values()))
    others = [one for key, one in found.items() if key not in expected]
    assert not any(one.any() for one in others)  # DDP gives them zeros
    assert figures["loss error"] < 1e-2 and figures["gradient cosine"] > place.size(0.99, 0.99999)
    assert figures["breaks"] == 0 and figures["parts"] > figures["graphs"]


def test_a_training_in_two_processes(place, figures, workspace):
    """Train with nnU-Net's ``-num_gpus 2``."""
    if not place.fake and torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    workspace.plans("shared", training=SHORT, method={"ramp": None}, teacher=TEACHER)
    if place.fake:
        in_processes("nnUNetTrainerDCD", 2, workspace, resume=False, stop_at=None)
    else:
        words = ["nnUNetv2_train", "598", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-p", "shared"]
        run(place, [*words, "-num_gpus", "2"], environment(place, workspace))
    logged = saved(workspace, "nnUNetTrainerDCD", "final")["logging"]
    figures["epochs"] = len(logged["train_losses"])
    figures["loss"], figures["dcd"] = (float(logged[key][-1]) for key in ("train_losses", "dcd"))
    assert figures["epochs"] == SHORT["num_epochs"]
    assert (folder_of(workspace, "nnUNetTrainerDCD") / "validation" / "summary.json").is_file()
