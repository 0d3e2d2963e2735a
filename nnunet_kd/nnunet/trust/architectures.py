"""Build networks from untrusted plans, without running their code and without exceeding the size of their weights.

nnU-Net imports and calls whatever plans name: ``"nonlin": "subprocess.Popen"`` starts a program when the network is
built. This module checks the names first and accepts only networks and layers of the packages listed below. The
readers, resampling functions, normalisations and trainers named in plans and checkpoints need no check, because nnU-Net
searches for them by a bare name in its own folders.
"""

from __future__ import annotations

import logging
import math
import pydoc
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dynamic_network_architectures.architectures
import torch
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.nn.parameter import is_lazy

from nnunet_kd.nnunet.error_reasons import first_line
from nnunet_kd.nnunet.reading import plans_errors

PACKAGES = ("torch.nn", "dynamic_network_architectures", "nnunetv2", "nnunet_kd.networks")
_ARCHITECTURES = dynamic_network_architectures.architectures

_MOST = 1000  # limit of stages, blocks and entries of a list
_LARGEST = 10**6  # limit of any other whole number, such as the length of an image's side in voxels
_VOXELS = 2**30  # limit of the voxels per patch


def check_networks(plans: Mapping[str, Any], path: Path, remedy: str, configuration: str | None = None) -> None:
    """Refuse plans whose network could run code, or does not fit into any computer's memory.

    Only modules of :data:`PACKAGES` are imported.

    Args:
        plans: The plans, from :func:`nnunet_kd.nnunet.reading.read_plans`.
        path: The file that they were read from, for messages.
        remedy: What a person who trusts the plans has to do; a sentence.
        configuration: The only configuration whose network will be built; ``None`` checks all of them.

    Raises:
        ValueError: If a network is refused; the message names the file and the reason.
    """
    _check_numbers(plans["configurations"], "configurations", path)
    with plans_errors(path):
        manager = PlansManager(dict(plans))
        if manager.label_manager_class is None:
            raise ValueError(f"nnU-Net has no label_manager {str(plans['label_manager'])[:60]!r}")
    for name in plans["configurations"] if configuration is None else [configuration]:
        with plans_errors(path):
            network, layers = _named_classes(manager, name)
        _check_name(network, path, remedy, is_network=True)
        for layer in layers:
            _check_name(layer, path, remedy)


def _named_classes(manager: PlansManager, configuration: str) -> tuple[Any, list[Any]]:
    """Return the names of a configuration's network and layers, after checking that the patch fits into memory."""
    content = manager.get_configuration(configuration).configuration
    patch = content.get("patch_size", [])
    if not all(isinstance(side, int) and side > 0 for side in patch) or math.prod(patch) > _VOXELS:
        raise ValueError(
            f"the patch_size of {configuration} must be positive whole numbers of at most 2^30 voxels in all, "
            f"got {str(patch)[:60]}"
        )
    architecture = content["architecture"]
    layers = [architecture["arch_kwargs"][key] for key in architecture["_kw_requires_import"]]
    return architecture["network_class_name"], [layer for layer in layers if layer is not None]


def _check_numbers(node: Any, name: str, path: Path) -> None:
    children: Any = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        if len(node) > _MOST:
            raise ValueError(
                f"{path} defines a network that is too large for any computer: {name} has {len(node)} entries"
            )
        children = ((name, child) for child in node)
    elif isinstance(node, int) and abs(node) > (_MOST if name.startswith("n_") else _LARGEST):
        raise ValueError(f"{path} defines a network that is too large for any computer: {name} is {node}")
    for key, child in children:
        _check_numbers(child, str(key), path)


def _check_name(name: Any, path: Path, remedy: str, is_network: bool = False) -> None:
    """Refuse a dotted name that is not the class of a network or layer in one of the known packages."""
    parts = str(name).split(".")
    known = any(str(name).startswith(f"{package}.") for package in PACKAGES)
    if not known or not all(re.fullmatch(r"[A-Za-z]\w*", part) for part in parts):
        raise ValueError(
            f"{path} builds its network with {str(name)[:100]!r}, which is not part of {', '.join(PACKAGES[:-1])} or "
            f"{PACKAGES[-1]} and could run code. {remedy}"
        )
    found: Any = None
    try:
        found = pydoc.locate(str(name))
        if found is None and is_network:  # nnU-Net searches for networks that have moved to another module
            found = recursive_find_python_class(_ARCHITECTURES.__path__[0], parts[-1], _ARCHITECTURES.__name__)
    except Exception as error:  # an import can raise any exception
        raise ValueError(f"{path} builds its network with {name}, which cannot be imported") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)) or not _is_of(found.__module__):
        raise ValueError(f"{path} builds its network with {name}, which is not a network or layer of that package")


def _is_of(module: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in PACKAGES)


def load_network(build: Callable[[], nn.Module], weights: Any, path: Path, trust: bool = False) -> nn.Module:
    """Build a network and load its weights, and abort if the network grows much larger than its weights.

    Args:
        build: A function that builds the network on PyTorch's default device.
        weights: The ``network_weights`` of a checkpoint.
        path: The checkpoint, for messages.
        trust: Whether to build the network without these checks.

    Raises:
        ValueError: If the weights are not tensors or do not belong to the network, or if the network cannot be built.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} does not contain the weights of a network")
    if trust:
        return _with_weights(build(), weights, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns that copying to the meta device has no effect
            with torch.device("meta"), _as_large_as(weights, path):
                without_memory = build()
            _with_weights(without_memory, weights, path)
    except _MisfitError:
        raise
    except Exception as error:  # some constructors compute with the weights, which the meta device cannot do
        logging.getLogger(__name__).info("the network could not be built on the meta device: %s", error)
    try:
        with _as_large_as(weights, path):
            network = build()
    except (_MisfitError, ImportError):  # an ImportError names the command that installs a missing package
        raise
    except Exception as error:  # a network can raise any exception if its keywords are wrong
        raise ValueError(f"the network of {path} cannot be built: {first_line(error)}") from error
    return _with_weights(network, weights, path)


class _MisfitError(ValueError):
    """The weights belong to another network."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"the weights in {path} do not belong to the plans.json beside them")


def _with_weights(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise _MisfitError(path) from error
    return network


@contextmanager
def _as_large_as(weights: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """Abort the construction of a network that grows much larger than these weights."""
    stored = {tensor.untyped_storage().data_ptr(): tensor for tensor in weights.values() if not tensor.is_sparse}
    elements = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in stored.values())
    # The limits are generous: networks can replace or remove parts, and most modules have no weights.
    left = {"elements": 2 * elements + 10**7, "tensors": 4 * len(weights) + 100, "modules": 50 * len(weights) + 1000}

    def count(what: str, amount: int) -> None:
        left[what] -= amount
        if left[what] < 0:
            raise _MisfitError(path)

    def tensor_made(_: nn.Module, __: str, tensor: Tensor | None) -> None:
        if tensor is not None and not is_lazy(tensor):
            count("tensors", 1)
            count("elements", tensor.numel())

    def module_made(_: nn.Module, __: str, ___: nn.Module | None) -> None:
        count("modules", 1)

    hooks = [
        registration.register_module_parameter_registration_hook(tensor_made),
        registration.register_module_buffer_registration_hook(tensor_made),
        registration.register_module_module_registration_hook(module_made),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
