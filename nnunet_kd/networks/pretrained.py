"""Pretrained weights of torchvision's classifiers, read from a file or downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_kd.nnunet.trust.archives import check_stored

RANDOM = "random"
IMAGENET = "imagenet"

# The indices of relu1_2, relu2_2, relu3_3 and relu4_3 in VGG-16's convolutional part.
VGG16_ENDS = (3, 8, 15, 22)


def vgg16_layers(weights: str | Path = IMAGENET) -> nn.Sequential:
    """Build VGG-16 (Simonyan & Zisserman, 2014) up to relu4_3.

    Args:
        weights: A file with torchvision's state dict, ``"imagenet"`` for torchvision's weights, or ``"random"`` for
            random weights that are the same in every call.

    Raises:
        ValueError: If the file does not hold such a state dict.
        FileNotFoundError: If the file is missing, or if the weights cannot be downloaded.
    """
    from torchvision.models import VGG16_Weights, vgg

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: nn.Sequential = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)[: VGG16_ENDS[-1] + 1]
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU):  # an in-place ReLU would overwrite the features that are read
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
    """Return the state dict of torchvision's ResNet-50.

    Args:
        weights: A file with the state dict, or ``"imagenet"`` for torchvision's weights.

    Raises:
        ValueError: If the file does not hold a state dict.
        FileNotFoundError: If the file is missing, or if the weights cannot be downloaded.
    """
    from torchvision.models import ResNet50_Weights

    return read_weights(weights, ResNet50_Weights.IMAGENET1K_V2, "ResNet-50")


def read_weights(weights: str | Path, published: Any, network: str) -> dict[str, Tensor]:
    """Read a state dict from a file, or download it.

    Args:
        weights: A file with the state dict, or ``"imagenet"``.
        published: torchvision's entry, which is downloaded for ``"imagenet"``.
        network: The name of the network, for messages.

    Raises:
        ValueError: If the file does not hold a state dict.
        FileNotFoundError: If the file is missing, or if the weights cannot be downloaded.
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
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(f"cannot read {weights}: it is damaged, or holds more than weights") from error
    if not isinstance(given, dict) or not all(isinstance(value, Tensor) for value in given.values()):
        raise ValueError(f"{weights} does not hold torchvision's weights of {network}")
    return given
