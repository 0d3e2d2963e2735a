"""The networks that ``nnunet_kd plan --network`` can write into plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from nnunet_kd.nnunet.settings import check_keys


@dataclass(frozen=True)
class NetworkOfPlans:
    """A network of this package and the changes that it makes to the plans.

    Attributes:
        class_name: The importable name of its class.
        shared: The keywords that are copied from the network of the plans. A network that copies
            ``features_per_stage`` has the teacher's stages.
        keywords: Further keywords of the network.
        keywords_3d: Those in 3-D, where they differ.
        one_output: Whether the plans have to describe one output, which nnU-Net's deep supervision needs to know.
        fixed_size: Whether the network has the keyword ``patch_size`` and takes images of this size only.
        slices_only: Whether the network is 2-D only, so that all other configurations are dropped.
        knows_background: Whether the network has the keyword ``background``, which says that the first output channel
            is the background.
        batch_size: The batch size in its paper, which replaces that of the plans.
        largest_batch: The upper limit of the batch size, which nnU-Net chose for a U-Net.
        most_pixels: The most pixels of a batch, which train within 8 GB, nnU-Net's default target of GPU memory.
        trainer: The trainer that usually trains it.
        first: What the user has to do before this trainer can run.
        multiple: The number of which the patch's sides must be multiples; they are rounded up.
        normalises: Whether the network normalises its deepest grid by instance, which needs more than one voxel.
        patch_size: The patch in its paper, which replaces that of the plans.
        training: The training settings of its paper, for the ``nnunet_kd`` block.
        paper: The same network with everything that its paper states, where the plans usually decide something else.
    """

    class_name: str
    shared: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    keywords_3d: dict[str, Any] = field(default_factory=dict)
    one_output: bool = False
    fixed_size: bool = False
    slices_only: bool = False
    knows_background: bool = False
    batch_size: int | None = None
    largest_batch: int | None = None
    most_pixels: int | None = None
    trainer: str = "nnUNetTrainerDCD"
    first: str | None = None
    multiple: int = 1
    normalises: bool = False
    patch_size: tuple[int, ...] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    paper: NetworkOfPlans | None = None

    @property
    def reducible(self) -> bool:
        """Whether the network can be made narrower by a factor."""
        return "features_per_stage" in (*self.shared, *self.keywords)

    def batch_of(self, planned: int, patch_size: Sequence[int] | None) -> int:
        """Return the batch size for a patch, given nnU-Net's; at least 2, as in nnU-Net, unless that is smaller."""
        limits = [planned] if self.largest_batch is None else [planned, self.largest_batch]
        if self.most_pixels is not None and patch_size is not None:
            limits.append(max(self.most_pixels // math.prod(patch_size), 2))
        return min(limits)

    def keywords_of(self, conv_op: str, patch_size: Sequence[int] | None) -> dict[str, Any]:
        """Return the keywords of the network that do not come from the plans.

        Args:
            conv_op: The name of the class of convolutions in the plans.
            patch_size: The patch size of the configuration.
        """
        dim = 3 if conv_op.endswith("3d") else 2
        keywords = deepcopy({**self.keywords, **(self.keywords_3d if dim == 3 else {})})
        if self.one_output:
            keywords["strides"] = [[step] * dim for step in (1, 4, 4)]
        if self.fixed_size:
            keywords["patch_size"] = None if patch_size is None else list(patch_size)
        return keywords

    def patch_of(self, planned: Sequence[int]) -> list[int]:
        """Return the patch size, given nnU-Net's."""
        sides = [-(-int(side) // self.multiple) * self.multiple for side in self.patch_size or planned]
        return [2 * side for side in sides] if self.normalises and max(sides) == self.multiple else sides

    @property
    def usual_reduction(self) -> float:
        """The default reduction: DCD's factor if the network has the teacher's widths, otherwise 1, as in its paper."""
        return 4 if "features_per_stage" in self.shared else 1


_CLASSIC, _NARROW = [64, 128, 256, 512, 1024], [16, 32, 64, 128, 256]


def _of_library(network: str, multiple: int, **changes: Any) -> NetworkOfPlans:
    """Return a network of a library, with which papers compare theirs."""
    return replace(
        NetworkOfPlans(
            "nnunet_kd.networks.library.LibraryNetwork",
            ("conv_op",),
            {"network": network},
            one_output=True,
            multiple=multiple,
            normalises=True,
            trainer="nnUNetTrainerNoKD",
        ),
        **{**changes, "keywords": {"network": network, **changes.get("keywords", {})}},
    )


_DRA_UNET = NetworkOfPlans(
    "nnunet_kd.networks.dra_unet.DRAUNet",
    ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides"),
)
_MOBILE_UNET = NetworkOfPlans("nnunet_kd.networks.mobile_unet.MobileUNet", _DRA_UNET.shared)
_BRAINSEG_DMIF = NetworkOfPlans(
    "nnunet_kd.networks.brainseg_dmif.BrainSegDMIF",
    ("conv_op",),
    one_output=True,
    slices_only=True,
    largest_batch=4,
    trainer="nnUNetTrainerBrainSegDMIF",
)
_VM_UNET = NetworkOfPlans(
    "nnunet_kd.networks.vm_unet.VMUNet",
    ("conv_op",),
    {"features_per_stage": [96, 192, 384, 768], "strides": [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]]},
    slices_only=True,
    largest_batch=32,
    most_pixels=12 * 256 * 256,  # 6.5 GiB, counted by benchmarks/training_memory.py; the optimizer needs the rest
    trainer="nnUNetTrainerDualSelfKD",
    multiple=32,
    training={"optimizer": "adamw", "initial_lr": 0.001},
)
_MEDNEXT_B = {  # MedNeXt-B of its paper, with kernels of 3
    "encoder_expansion_ratio": [2, 3, 4, 4],
    "bottleneck_expansion_ratio": 4,
    "decoder_expansion_ratio": [4, 4, 3, 2],
    "kernel_size": 3,
    "use_residual_connection": True,
}
_SLICES = (256, 256)  # the images of three of the papers

NETWORKS = {
    "dra_unet": replace(
        _DRA_UNET,
        paper=replace(
            _DRA_UNET,
            shared=("conv_op",),
            keywords={
                "n_stages": 5,
                "features_per_stage": [64, 128, 256, 512, 1024],
                "kernel_sizes": [[3, 3]] * 5,
                "strides": [[1, 1], *[[2, 2]] * 4],
            },
            slices_only=True,
            most_pixels=11 * 256 * 256,  # a slice keeps 0.67 GiB for the backward pass
            patch_size=_SLICES,
            training={"lr_schedule": "plateau", "augmentation": "flips_and_brightness"},
        ),
    ),
    "mobile_unet": _MOBILE_UNET,
    "kd_sam": NetworkOfPlans(
        "nnunet_kd.networks.kd_sam.KDSAM",
        ("conv_op",),
        one_output=True,
        slices_only=True,
        knows_background=True,
        batch_size=16,
        trainer="nnUNetTrainerKDSAM",
        first='name SAM\'s weights in its nnunet_kd block: "method": {"checkpoint": "FILE"}',
    ),
    "brainseg_dmif": replace(_BRAINSEG_DMIF, paper=replace(_BRAINSEG_DMIF, patch_size=_SLICES)),
    "vm_unet": replace(
        _VM_UNET,
        paper=replace(
            _VM_UNET,
            batch_size=32,
            most_pixels=None,
            patch_size=_SLICES,
            training={
                **_VM_UNET.training,
                "num_epochs": 300,
                "lr_schedule": "cosine",
                "augmentation": "flips_and_rotations",
                "deep_supervision": False,
            },
        ),
    ),
    "monai.UNet": _of_library(
        "monai.UNet",
        16,
        keywords={"channels": _CLASSIC, "num_res_units": 2},
        keywords_3d={"channels": _NARROW},
    ),
    "monai.AttentionUnet": _of_library(
        "monai.AttentionUnet",
        16,
        keywords={"channels": _CLASSIC},
        keywords_3d={"channels": _NARROW},
    ),
    "monai.BasicUNetPlusPlus": _of_library("monai.BasicUNetPlusPlus", 16),
    "monai.MedNeXt": _of_library("monai.MedNeXt", 16, keywords=_MEDNEXT_B),
    "monai.UNETR": _of_library("monai.UNETR", 16, fixed_size=True),
    "monai.SwinUNETR": _of_library("monai.SwinUNETR", 32, fixed_size=True, keywords={"feature_size": 48}),
    "smp.MAnet": _of_library("smp.MAnet", 32, slices_only=True),
    "smp.Linknet": _of_library("smp.Linknet", 32, slices_only=True),
}


def network_of_plans(name: str, paper: bool = False) -> NetworkOfPlans:
    """Return a network by the name that ``nnunet_kd plan --network`` gives it.

    Args:
        name: A key of :data:`NETWORKS`.
        paper: Whether to return it as in its paper.

    Raises:
        ValueError: If there is no such network, or if its usual plans already have what its paper states.
    """
    check_keys({name: None}, NETWORKS, "the networks")
    network = NETWORKS[name]
    if not paper:
        return network
    if network.paper is None:
        others = ", ".join(other for other, one in NETWORKS.items() if one.paper is not None)
        raise ValueError(f"the plans of {name} have the size of its paper without --paper, which is for {others}")
    return network.paper
