"""Weights of torchvision's classifiers, from a file or downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.nnunet.trust.archives import check_stored

RANDOM = "random"
IMAGENET = "imagenet"

# relu1_2, relu2_2, relu3_3, relu4_3: positions in VGG-16's convolutional part.
VGG16_ENDS = (3, 8, 15, 22)


def vgg16_layers(weights: str | Path = IMAGENET) -> nn.Sequential:
    """VGG-16 (Simonyan & Zisserman, 2014) up to relu4_3.

    Args:
        weights: File with torchvision's state dict; ``"imagenet"``: torchvision's own; ``"random"``: no trained weights
            at all, the same at every call.

    Raises:
        ValueError: For a file that is no such state dict.
        FileNotFoundError: Where there is no file, or nothing can be downloaded.
    """
    from torchvision.models import VGG16_Weights, vgg

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: nn.Sequential = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[: VGG16_ENDS[-1] + 1]
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU):  # in place it would overwrite what is read
            layers[number] = nn.ReLU(inplace=False)
    if weights == RANDOM:
        return layers
    given = read_weights(weights, VGG16_Weights.IMAGENET1K_V1, "VGG-16")
    names = {f"features.{name}": name for name in layers.state_dict()}
    try:
        layers.load_state_dict({names[name]: value for name, value in given.items() if name in names})
    except RuntimeError as error:
        raise ValueError(f"{weights} does not hold torchvision's weights of VGG-16") from error
    return layers


def resnet50_weights(weights: str | Path = IMAGENET) -> dict[str, Tensor]:
    """State dict of torchvision's ResNet-50.

    Args:
        weights: A file, or ``"imagenet"``: torchvision's own.

    Raises:
        ValueError: For a file that is no state dict.
        FileNotFoundError: Where there is no file, or nothing can be downloaded.
    """
    from torchvision.models import ResNet50_Weights

    return read_weights(weights, ResNet50_Weights.IMAGENET1K_V2, "ResNet-50")


def read_weights(weights: str | Path, published: Any, network: str) -> dict[str, Tensor]:
    """A state dict.

    Args:
        weights: A file, or ``"imagenet"``.
        published: torchvision's entry, downloaded for ``"imagenet"``.
        network: Its name, for messages.

    Raises:
        ValueError: For a file that is no state dict.
        FileNotFoundError: Where there is no file, or nothing can be downloaded.
    """
    if weights == IMAGENET:
        try:
            downloaded: dict[str, Tensor] = published.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network, or a broken download
            raise FileNotFoundError(
                f"torchvision's weights of {network} cannot be downloaded here: fetch {published.url} elsewhere and "
                "name the file instead"
            ) from error
        return downloaded
    if not Path(weights).is_file():
        raise FileNotFoundError(f"there are no weights of {network} in {weights}")
    check_stored(Path(weights))
    try:
        given = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"cannot read {weights}: it is damaged, or holds more than weights") from error
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise ValueError(f"{weights} does not hold torchvision's weights of {network}")
    return given
