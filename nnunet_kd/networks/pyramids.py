"""Adapters that show the encoders of other networks in nnU-Net's form, so that their features can teach.

An adapter is a function from a network to a module that shares its weights and has nnU-Net's interface: ``encoder``,
which maps images to the features of all stages, finest first, and lists ``output_channels`` and ``strides``; and
``decoder``, which maps these features to logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nnunet_kd.networks.stages import has_encoder_stages


class _MedNeXtEncoder(nn.Module):
    """The stages of MONAI's MedNeXt and its bottleneck, which is the deepest stage."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem, self.stages, self.down_blocks = network.stem, network.enc_stages, network.down_blocks
        self.bottleneck = network.bottleneck
        steps = [block.conv1.stride for block in self.down_blocks]
        self.strides = [(1,) * len(steps[0]), *steps]
        self.output_channels = [
            *(block.conv1.in_channels for block in self.down_blocks),
            self.down_blocks[-1].conv3.out_channels,
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        features = []
        for stage, down_block in zip(self.stages, self.down_blocks, strict=True):
            x = stage(x)
            features.append(x)
            x = down_block(x)
        return [*features, self.bottleneck(x)]


class _MedNeXtDecoder(nn.Module):
    """The decoder of MONAI's MedNeXt, which adds the encoder's features to its own."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.up_blocks, self.stages, self.head = network.up_blocks, network.dec_stages, network.out_0

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up_block, stage, skip in zip(self.up_blocks, self.stages, reversed(skips), strict=True):
            x = stage(up_block(x) + skip)
        logits: Tensor = self.head(x)
        return logits


def _mednext(network: nn.Module) -> nn.Module:
    pyramid = nn.Module()
    pyramid.encoder = _MedNeXtEncoder(network)
    pyramid.decoder = _MedNeXtDecoder(network)
    return pyramid


PYRAMIDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "monai.networks.nets.mednext.MedNeXt": _mednext,
}


def pyramid_of(network: nn.Module) -> nn.Module:
    """Return a teacher's network in nnU-Net's form: itself, or what the adapter of its class makes of it.

    Args:
        network: Any network. Of a :class:`~nnunet_kd.networks.library.LibraryNetwork`, the library's own counts.

    Raises:
        NotImplementedError: If the network has no encoder stages, and its class no adapter.
    """
    if has_encoder_stages(network):
        return network
    own = _of_library(network)
    for kind in type(own).__mro__:
        adapter = PYRAMIDS.get(f"{kind.__module__}.{kind.__qualname__}")
        if adapter is not None:
            return adapter(own)
    raise NotImplementedError(
        f"the teacher's network, {name_of(network)}, has no encoder stages whose features could be distilled: use a "
        "method that needs its logits alone, such as nnUNetTrainerLogitsKD or nnUNetTrainerCWD"
    )


def name_of(network: nn.Module) -> str:
    """Return the package and the class of a network, for messages."""
    kind = type(_of_library(network))
    return f"{kind.__module__.partition('.')[0]}.{kind.__name__}"


def _of_library(network: nn.Module) -> nn.Module:
    own: nn.Module = getattr(network, "of_library", network)
    return own
