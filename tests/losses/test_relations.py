"""Relations across processes: the mean gradient over unequal batches is that of the joint batch."""

import sys

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from nnunet_kd.losses import CIRKDLoss, RKDLoss
from nnunet_kd.losses.relations import JointBatch
from tests.killing import fork_from_here, preloaded
from tests.losses.random_maps import random_maps

SIZES = (2, 1)
EVERYTHING = {"pixel_memory": 60, "region_memory": 9, "pixels": 20}  # nothing is left to random numbers


def gradients(share: slice) -> dict[str, torch.Tensor]:
    """Return the gradients of a layer before the losses, and the memories after them."""
    student, teacher = random_maps((4, 5), 3, 0, batch=3)[share], random_maps((4, 5), 6, 1, batch=3)[share]
    classes = torch.randint(-1, 2, (3, 4, 5), generator=torch.Generator().manual_seed(2))[share]
    found = {}
    for name, loss in (("rkd", RKDLoss()), ("cirkd", CIRKDLoss(**EVERYTHING))):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 3, 1).double()
        if name == "rkd":
            adapter, options = nn.Identity(), {}
        else:
            adapter, options = loss.projection(3, 6, 2, 2).double(), {"classes": classes, "num_classes": 2}
        loss(layer(student), teacher, adapter, **options).backward()
        found.update({f"{name} {key}": one.grad for key, one in layer.named_parameters()})
        found.update({f"{name} {key}": one.grad for key, one in adapter.named_parameters()})
        found.update({f"{name} {key}": one.double().sum(1) for key, one in adapter.named_buffers() if one.ndim == 3})
    return found


def worker(rank: int, out: str) -> None:
    """Run one of the processes."""
    fork_from_here()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    batch = JointBatch(torch.zeros(SIZES[rank], 1))
    assert (batch.processes, batch.size, batch.rows) == (2, 3, [slice(0, 2), slice(2, 3)][rank])
    torch.save(gradients(batch.rows), f"{out}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.xdist_group("ddp")
@pytest.mark.skipif(not dist.is_gloo_available() or sys.platform == "win32", reason="needs gloo")
def test_mean_gradient_is_that_of_the_joint_batch(tmp_path):
    preloaded()
    multiprocessing.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    expected = gradients(slice(None))
    assert len(expected) == 2 + 6 + 2
    for name, gradient in expected.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, gradient, msg=lambda m, name=name: f"{name}: {m}")
    for name in ("cirkd pixels", "cirkd regions"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
