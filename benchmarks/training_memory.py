"""Count the memory and the kernels of a training step of each method, beside stock nnU-Net's, without a GPU.

    python benchmarks/training_memory.py [--size 128] [--batch 2] [--classes 3] [--methods DCD CWD ...] [--largest 1.5]

The tensors are fake and under autocast to float16, so nothing is computed; nnU-Net's loss gets float32, as on a GPU.
The script runs the forward pass, the losses and the backward pass, and follows the bytes of all storages that exist at
once: weights, activations, gradients, and what is saved for the backward pass. A real step also needs the optimizer's
momentum, the workspaces of cuDNN, and what the allocator wastes; a compiled one needs less for the networks. The
teacher and stock's network have the widths 32, 64, 128, 256, 320 and 320, the student a quarter of them, but that of
DualSelfKD, which has no teacher, all of them. VM-UNet is counted in 2-D at 256 x 256 with the batch of its plans.
Kernels are counted as by benchmarks/launches.py, in the whole step but for the optimizer.

With ``--largest`` the script fails if a method needs more than that many times as much as stock.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.launches import Launches
from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import TERMS
from nnunet_kd.distillation.student import StudentWithAdapters
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.networks.vm_unet import VMUNet
from nnunet_kd.nnunet.planning import NETWORKS
from nnunet_kd.teachers.teacher import IN_LOW_PRECISION, Teacher

GIB = 2**30
WIDTHS = [32, 64, 128, 256, 320, 320]
# method -> its terms with the settings that differ from their defaults, and the epoch
METHODS: dict[str, tuple[dict[str, dict[str, Any]], int]] = {
    "stock": ({}, 0),
    "NoKD": ({}, 0),
    "DCD": ({"dcd": {"ramp": None}}, 0),
    "LogitsKD": ({"logits": {}}, 0),
    "FitNets": ({"fitnets": {}}, 0),
    "CWD": ({"cwd": {}}, 0),
    "IFVD": ({"ifvd": {}, "logits": {}}, 0),
    "DPRD": ({"dprd": {"ramp": None}}, 0),
    "ReCoKD": ({"reco_kd": {"ramp": None}}, 0),
    "FreeKD, tuning": ({"freekd": {"prompt_epochs": 1}}, 0),
    "FreeKD": ({"freekd": {"prompt_epochs": 1}}, 1),
    "DualSelfKD": ({"dual_self": {}}, 0),
    "RKD": ({"rkd": {}}, 0),
    "CIRKD": ({"cirkd": {}, "logits": {}}, 0),
    "SKD": ({"skd": {}, "logits": {}}, 0),
}
VM_UNET = "VM-UNet"


@dataclass(frozen=True)
class Step:
    """What a training step needs.

    Attributes:
        memory: The peak memory in GiB.
        kernels: The number of kernels that are launched.
    """

    memory: float
    kernels: int


class Live(TorchDispatchMode):
    """Follow the bytes of all storages that exist at once.

    Attributes:
        now: The bytes of the storages that exist.
        peak: The most bytes that existed at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


class Labels:
    """What is read of nnU-Net's label manager."""

    has_regions, ignore_label = False, None

    def __init__(self, classes: int) -> None:
        self.num_segmentation_heads = classes


def unet(widths: list[int], classes: int) -> nn.Module:
    """Build nnU-Net's 3-D network of six stages."""
    network: nn.Module = PlainConvUNet(
        1,
        len(widths),
        widths,
        nn.Conv3d,
        3,
        [1, *[2] * (len(widths) - 1)],
        2,
        classes,
        2,
        True,
        nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    return network


class InSinglePrecision(nn.Module):
    """nnU-Net's loss with the types that autocast gives it on a GPU."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one scale."""
        with torch.autocast("cpu", enabled=False):
            value: Tensor = self.loss(logits.float(), target)
            return value


def task_loss(scales: int) -> DeepSupervisionWrapper:
    """Build nnU-Net's Dice and cross-entropy under deep supervision."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = InSinglePrecision(DC_and_CE_loss(dice, {}, 1, 1, dice_class=MemoryEfficientSoftDiceLoss))
    weights = [0.5**scale for scale in range(scales - 1)] + [0.0]
    return DeepSupervisionWrapper(loss, [weight / sum(weights) for weight in weights])


def counted_step(
    network: nn.Module, images: Tensor, losses: Callable[[Any], Tensor], given: Iterable[Tensor] = ()
) -> Step:
    """Compute the losses, which makes constants, take a training step, and return what that needs.

    Args:
        network: The network that trains.
        images: Its input.
        losses: Maps the network's output to the sum of all losses.
        given: What else exists before the step and during all of it.
    """

    def computed() -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return losses(network(images))

    computed()
    live = Live()
    for tensor in (*network.parameters(), images, *given):
        live.add(tensor)
    with live, Launches() as launches:
        computed().backward()
    return Step(live.peak / GIB, launches.count)


def measured(method: str, size: int, batch: int, classes: int) -> Step:
    """Return what a training step of a method needs."""
    if method == VM_UNET:
        return measured_vm_unet(vm_unets_batch(), 256, classes)
    settings, epoch = METHODS[method]
    terms = [TERMS[name].changed(options).build(10) for name, options in settings.items()]
    images = torch.empty(batch, 1, size, size, size)
    narrow = method not in ("stock", "DualSelfKD")
    student = unet([width // 4 for width in WIDTHS] if narrow else WIDTHS, classes)
    targets = [torch.empty(batch, 1, *[size // 2**scale] * 3) for scale in range(len(WIDTHS) - 1)]
    loss = task_loss(len(targets))
    if method == "stock":
        return counted_step(student, images, lambda logits: loss(logits, targets), targets)
    distiller = Distiller(terms, LabelCodes(Labels(classes)))
    teacher = None
    if distiller.needs_teacher:
        network = unet(WIDTHS, classes)
        logits = distiller.reads_teacher_logits
        teacher = Teacher(network, distiller.reads_teacher_encoder, logits, logits)
        for module in teacher.modules():  # as Teacher.settle does on a GPU
            for name, parameter in [*module.named_parameters(recurse=False)]:
                if type(module) in IN_LOW_PRECISION:
                    setattr(module, name, nn.Parameter(parameter.detach().half(), requires_grad=False))
        distiller.attach(teacher, distiller.check(encoder_stages(student), encoder_stages(network)))
    joint = StudentWithAdapters(
        student, distiller.adapters(student), distiller.reads_encoder, distiller.reads_decoder
    ).train()

    def losses(outputs: Any) -> Tensor:
        segmentation = loss(outputs.logits, targets)
        options = {"adapters": joint.adapters, "task_loss": loss.loss}
        values = distiller(images, outputs, targets, epoch, **options)
        return distiller.total(segmentation, values, epoch, joint.adapters.parameters())

    return counted_step(joint, images, losses, [*targets, *(() if teacher is None else teacher.parameters())])


def vm_unets_batch() -> int:
    """Return the batch of VM-UNet's plans where nnU-Net plans 49 slices of 256 x 256 for a U-Net."""
    return NETWORKS["vm_unet"].batch_of(49, (256, 256))


def measured_vm_unet(batch: int, size: int, classes: int) -> Step:
    """Return what a training step of VM-UNet needs."""
    network = VMUNet(1, classes, deep_supervision=True).train()
    targets = [torch.empty(batch, 1, size // factor, size // factor) for factor in (1, 4, 8, 16)]
    loss = task_loss(len(targets))
    images = torch.empty(batch, 1, size, size)
    return counted_step(network, images, lambda logits: loss(logits, targets), targets)


def main() -> int:
    """Print the memory and kernels of every method."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, default=128, help="voxels per side of a patch (default: 128)")
    options.add_argument("--batch", type=int, default=2, help="patches of a batch (default: 2)")
    options.add_argument("--classes", type=int, default=3, help="classes with background (default: 3)")
    options.add_argument("--methods", nargs="*", choices=[*METHODS, VM_UNET], default=[*METHODS, VM_UNET])
    options.add_argument("--largest", type=float, help="fail if a method needs more than so many times stock's memory")
    chosen = options.parse_args()
    worst = 0.0
    with FakeTensorMode():
        stock = measured("stock", chosen.size, chosen.batch, chosen.classes)
        print(f"{'stock':<16}{stock.memory:>6.2f} GiB{stock.kernels:>7,} kernels", flush=True)
        for method in chosen.methods:
            if method == "stock":
                continue
            needed = measured(method, chosen.size, chosen.batch, chosen.classes)
            if method == VM_UNET:
                note = f"batch {vm_unets_batch()} of 256 x 256"
            else:
                ratio = needed.memory / stock.memory
                note = f"{ratio:.2f} times stock's memory, {needed.kernels / stock.kernels:.1f} times its kernels"
                worst = max(worst, ratio)
            print(f"{method:<16}{needed.memory:>6.2f} GiB{needed.kernels:>7,} kernels  {note}", flush=True)
    return int(chosen.largest is not None and worst > chosen.largest)


if __name__ == "__main__":
    sys.exit(main())
