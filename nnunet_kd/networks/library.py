"""Networks of MONAI and segmentation-models-pytorch, with which papers compare theirs, as networks of plans."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn

from nnunet_kd.networks.output_scales import full_and_quarter


@dataclass(frozen=True)
class _Library:
    """A library and how its networks name their arguments.

    Attributes:
        module: The module that holds the networks.
        networks: The names of those that can be used.
        package: What pip installs, for messages.
        arguments: From channels of the images, channels of the output and number of axes to keywords.
    """

    module: str
    networks: tuple[str, ...]
    package: str
    arguments: Callable[[int, int, int], dict[str, Any]]


def _of_monai(inputs: int, outputs: int, dim: int) -> dict[str, Any]:
    return {"spatial_dims": dim, "in_channels": inputs, "out_channels": outputs}


def _of_smp(inputs: int, outputs: int, _dim: int) -> dict[str, Any]:
    return {"in_channels": inputs, "classes": outputs, "encoder_weights": None}


_LIBRARIES = {
    "monai": _Library(
        "monai.networks.nets",
        ("UNet", "AttentionUnet", "BasicUNetPlusPlus", "MedNeXt", "UNETR", "SwinUNETR"),
        "nnunet_kd",
        _of_monai,
    ),
    "smp": _Library("segmentation_models_pytorch", ("MAnet", "Linknet"), "nnunet_kd[smp]", _of_smp),
}
_VOLUMES = ("monai",)  # the libraries with 3-D networks
_TRANSFORMERS = ("monai.UNETR", "monai.SwinUNETR")


class LibraryNetwork(nn.Module):
    """A network of a library in nnU-Net's form, which the plans name ``nnunet_kd.networks.library.LibraryNetwork``.

    It has one output and no stages, so that it is no student of methods that compare features. It can teach them if
    :mod:`nnunet_kd.networks.pyramids` has an adapter of its class. nnU-Net expects several outputs under deep
    supervision; :mod:`nnunet_kd.networks.output_scales` says which it gets.

    Args:
        input_channels: The number of channels of the images.
        num_classes: The number of output channels.
        network: The library and the class, such as ``"monai.SwinUNETR"``.
        conv_op: ``torch.nn.Conv2d`` or ``Conv3d``, which gives the number of axes.
        strides: What nnU-Net derives the scales of the outputs from; it has to be 1, 4, 4 on every axis.
        patch_size: The only size of images, for networks with an embedding of positions.
        deep_supervision: Whether to return logits at a quarter of the resolution as well.
        options: Keywords of the class in the library; its own strides, where it has any, are 2.

    Shape:
        ``(B, input_channels, *spatial)`` to ``(B, num_classes, *spatial)``; under deep supervision a list of the logits
        and of those at a quarter of the resolution.

    Raises:
        ValueError: If there is no such network, if it has no 3-D form, or for other strides.
        ImportError: If the library is not installed.
    """

    resizes = True  # exported to ONNX with the patch as the only size

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        network: str,
        conv_op: Any = nn.Conv2d,
        strides: Sequence[Sequence[int]] | None = None,
        patch_size: Sequence[int] | None = None,
        deep_supervision: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        dim = convert_conv_op_to_dim(conv_op)
        wanted = [[step] * dim for step in (1, 4, 4)]
        if strides is not None and [list(stride) for stride in strides] != wanted:
            raise ValueError(f"the strides of {network} must be {wanted}, got {strides}")
        library, kind = _find(network, dim)
        keywords = library.arguments(input_channels, num_classes, dim)
        accepted = inspect.signature(kind).parameters
        if "img_size" in accepted:  # older versions of MONAI ask for it in more networks
            if patch_size is None:
                raise ValueError(f"{network} needs patch_size, the size of its images")
            keywords["img_size"] = tuple(patch_size)
        if "strides" in accepted and isinstance(options.get("channels"), list | tuple):
            keywords["strides"] = (2,) * (len(options["channels"]) - 1)
        unknown = [name for name in options if name not in accepted or name in keywords]
        if unknown:
            raise ValueError(f"{network} has no option {unknown[0]!r}, or gets it from nnU-Net")
        self.compiles = network not in _TRANSFORMERS  # the trainers of this package ask
        self.decoder = _OneOutput(_built(kind, {**keywords, **options}), deep_supervision)

    @property
    def of_library(self) -> nn.Module:
        """The library's own network."""
        return self.decoder.network

    def forward(self, x: Tensor) -> Any:
        """Return logits, or a list of them under deep supervision."""
        return self.decoder(x)


class _OneOutput(nn.Module):
    """The network, with nnU-Net's switch of deep supervision."""

    def __init__(self, network: nn.Module, deep_supervision: bool) -> None:
        super().__init__()
        self.network = network
        self.deep_supervision = deep_supervision

    def forward(self, x: Tensor) -> Any:
        outputs = self.network(x)
        logits: Tensor = outputs[0] if isinstance(outputs, list | tuple) else outputs
        return full_and_quarter(logits) if self.deep_supervision else logits


def _find(network: str, dim: int) -> tuple[_Library, type[nn.Module]]:
    """Find the library and the class of a network."""
    prefix, _, name = network.partition(".")
    known = [f"{key}.{one}" for key, library in _LIBRARIES.items() for one in library.networks]
    if network not in known:
        raise ValueError(f"there is no network {network[:60]!r}: choose one of {', '.join(known)}")
    if dim != 2 and prefix not in _VOLUMES:
        raise ValueError(f"{network} segments slices: conv_op must be torch.nn.Conv2d")
    library = _LIBRARIES[prefix]
    try:
        module = importlib.import_module(library.module)
    except ImportError as error:
        raise ImportError(f"{network} needs a package that is missing here: pip install '{library.package}'") from error
    kind: type[nn.Module] | None = getattr(module, name, None)
    if kind is None:
        raise ImportError(f"{network} needs a newer version of its package: pip install -U '{prefix}'")
    return library, kind


def _built(kind: type[nn.Module], keywords: dict[str, Any]) -> nn.Module:
    """Build a network on PyTorch's default device; some compute with numbers that the meta device does not have."""
    target = torch.get_default_device()
    if target.type != "meta":
        return kind(**keywords)
    with torch.device("cpu"):
        network = kind(**keywords)
    return network.to(target)
