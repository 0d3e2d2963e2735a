"""Derive a student's plans from a teacher's; all functions map dictionaries to new dictionaries and touch no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.networks_of_plans import NETWORKS, NetworkOfPlans, network_of_plans
from nnunet_kd.nnunet.settings import BLOCK, Plans, StudentSettings, check_keys

if TYPE_CHECKING:
    from nnunet_kd.nnunet.experiment import Experiment

# The networks whose widths are given by `features_per_stage`, by the last part of `network_class_name`.
REDUCIBLE_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet", "DRAUNet", "MobileUNet", "VMUNet")

RECIPE = "nnUNetTrainerKD"  # the default trainer of students that have one of nnU-Net's networks


def usual_trainer(plans: Plans, configuration: str) -> str:
    """Return the usual trainer of a configuration's network, which is the recipe's for nnU-Net's own networks."""
    content = (plans["configurations"][name] for name in _with_ancestors(plans, configuration))
    name = next((one["architecture"]["network_class_name"] for one in content if "architecture" in one), None)
    return next((network.trainer for network in NETWORKS.values() if network.class_name == name), RECIPE)


def reduce_widths(widths: Sequence[int], reduction: float, min_features: int = 8) -> list[int]:
    """Reduce every width to ``max(width // reduction, min_features)``, but never widen a stage."""
    exact = Fraction(str(reduction))  # because 32 // 1.6 is 19 in floating point
    return [min(width, max(int(width // exact), min_features)) for width in widths]


def student_plans(
    plans: Plans,
    reduction: float = 4,
    min_features: int = 8,
    widths: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
    network: str | None = None,
    regions: bool = False,
    trained: str | None = None,
    paper: bool = False,
) -> Plans:
    """Return a student's plans, with the teacher's preprocessing and topology but narrower stages.

    Args:
        plans: The teacher's plans, which are not modified.
        reduction: DCD's factor r, which divides every width.
        min_features: The smallest width of a stage.
        widths: The widths of the stages by configuration, instead of the factor.
        name: The ``plans_name`` of the result; by default the name does not change.
        network: A network of :data:`NETWORKS` instead of the teacher's. It has either the stages, strides, kernels and
            axes of the teacher or its own; the factor divides its widths if it has any.
        regions: Whether the labels of the data set are regions, which some networks need to know.
        trained: The only configuration that will be trained. Other configurations with an unknown network are then
            kept unchanged instead of being refused.
        paper: Whether the network has the stages, patch, batch and training settings of its paper.

    Raises:
        ValueError: If the widths of an architecture are unknown, the number of widths is wrong, a width is below 1, or
            a configuration or network is unknown.
    """
    if paper and network is None:
        raise ValueError("--paper needs a network: name it with --network")
    other = None if network is None else network_of_plans(network, paper)
    widths = dict(widths or {})
    check_keys(widths, plans["configurations"], "widths by configuration")
    if other is not None and not other.reducible:
        if widths:
            raise ValueError(f"{network} does not have the stages of the plans, so its widths cannot be chosen")
        reduction = 1
    settings = StudentSettings(plans["plans_name"], reduction, min_features)
    plans = _with_architectures(plans)
    reduced = deepcopy(plans)
    if other is not None and other.slices_only:
        reduced["configurations"] = _of_slices(plans, str(network))
    needed = [*plans["configurations"]] if trained is None else _with_ancestors(plans, trained)
    for configuration, content in reduced["configurations"].items():
        if configuration not in needed and _class_name(content) not in (None, *REDUCIBLE_NETWORKS):
            continue
        if other is not None and "patch_size" in content:  # the patch and the network can be inherited independently
            content["patch_size"] = other.patch_of(content["patch_size"])
        if configuration in widths and "architecture" not in content:
            raise ValueError(f"configuration {configuration} inherits its network from {content.get('inherits_from')}")
        if "architecture" not in content:
            if "inherits_from" in content:
                if other is not None and other.fixed_size and "patch_size" in content:  # a size of its own
                    content["architecture"] = deepcopy(_inherited(plans, configuration, "architecture"))
                    _change_network(content, other, regions, configuration, content["patch_size"])
                continue
            raise ValueError(
                f"configuration {configuration} has no 'architecture': plan the data set again with "
                "nnUNetv2_plan_experiment"
            )
        if other is not None:
            patch = content.get("patch_size", _inherited(reduced, configuration, "patch_size"))
            _change_network(content, other, regions, configuration, patch)
        if other is None or other.reducible:
            arguments = _reducible_arguments(content["architecture"], configuration)
            before = arguments["features_per_stage"]
            after = list(
                widths[configuration] if configuration in widths else reduce_widths(before, reduction, min_features)
            )
            _check_widths(after, len(before), configuration)
            arguments["features_per_stage"] = after
    if name is not None:
        reduced["plans_name"] = name
    reduced[BLOCK] = {**reduced.get(BLOCK, {}), "student": asdict(settings)}
    if other is not None and other.training:
        reduced[BLOCK]["training"] = {**other.training, **reduced[BLOCK].get("training", {})}
    return reduced


def _with_ancestors(plans: Plans, configuration: str) -> list[str]:
    """Return a configuration and its ancestors."""
    names = [configuration]
    while names[-1] in plans["configurations"]:
        parent = plans["configurations"][names[-1]].get("inherits_from")
        if parent is None or parent in names:
            break
        names.append(parent)
    return names


def _inherited(plans: Plans, configuration: str, key: str) -> Any:
    """Return what the nearest ancestor of a configuration has under a key; ``None`` if none has it."""
    have = plans["configurations"]
    ancestors = (have[name] for name in _with_ancestors(plans, configuration)[1:] if name in have)
    return next((one[key] for one in ancestors if key in one), None)


def plans_of_student(
    experiment: Experiment, student: StudentSettings | None, reduction: float, network: str | None, trainer: str
) -> Plans:
    """Return a student's plans unchanged, and derive other plans as their block or the trainer asks.

    Args:
        experiment: The plans of the student or of its teacher, with the configuration to train.
        student: The student that the plans name; ``None`` if they name none.
        reduction: The divisor of the widths if the plans name no student.
        network: The network of the student, a key of :data:`NETWORKS`; ``None`` keeps the network of the plans.
        trainer: The name of the trainer, for messages.

    Raises:
        ValueError: If no such student can be derived, or if it would have no such configuration.
    """
    plans = experiment.plans
    if student is not None and student.source_plans not in (None, plans["plans_name"]):
        return deepcopy(plans)
    if student is None and reduction == 1 and network is None:
        return deepcopy(plans)
    reduction, least = (reduction, 8) if student is None else (student.reduction, student.min_features)
    regions = experiment.label_manager.has_regions
    derived = student_plans(plans, reduction, least, network=network, regions=regions, trained=experiment.configuration)
    if experiment.configuration not in derived["configurations"]:
        raise ValueError(
            f"{trainer} trains the configurations {', '.join(derived['configurations'])}, not "
            f"{experiment.configuration}"
        )
    return derived


def student_name(
    source: str, network: str | None, reduction: float, widths: Sequence[int] | None = None, paper: bool = False
) -> str:
    """Return the name of a student's plans, composed of the source plans, the network and the reduction."""
    other = None if network is None else network_of_plans(network, paper)
    own_size = other is not None and not (other.reducible and (widths or reduction != 1))
    size = None if own_size else ("w" + "_".join(map(str, widths)) if widths else f"r{reduction:g}")
    return "_".join(filter(None, [source, network and network.replace(".", "_"), "paper" if paper else None, size]))


def is_reducible(content: Mapping[str, Any]) -> bool:
    """Return whether the widths of the network that a configuration defines can be reduced."""
    return _class_name(content) in REDUCIBLE_NETWORKS


def _class_name(content: Mapping[str, Any]) -> str | None:
    """Return the class name, without its module, of the network that a configuration defines; ``None`` if inherited."""
    return content["architecture"]["network_class_name"].rpartition(".")[2] if "architecture" in content else None


def _with_architectures(plans: Plans) -> Plans:
    """Convert plans written before nnU-Net 2.4, which contain no architecture, as nnU-Net itself converts them."""
    old = [name for name, content in plans["configurations"].items() if "UNet_class_name" in content]
    if not old:
        return plans
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    plans = deepcopy(plans)
    for name in old:
        plans["configurations"][name] = ConfigurationManager(plans["configurations"][name]).configuration
    return plans


def _of_slices(plans: Plans, network: str) -> dict[str, Any]:
    """Return the configurations whose network is 2-D, including those that inherit it."""

    have = plans["configurations"]

    def convolution(name: str) -> str:
        family = (have[one] for one in _with_ancestors(plans, name) if one in have)
        content: Mapping[str, Any] = next((one for one in family if "architecture" in one), {})
        return str(content.get("architecture", {}).get("arch_kwargs", {}).get("conv_op"))

    kept = {name: deepcopy(content) for name, content in have.items() if convolution(name).endswith("2d")}
    if not kept:
        raise ValueError(f"{network} is a 2-D network, but {plans['plans_name']} has no 2d configuration")
    return kept


def _change_network(
    content: dict[str, Any], network: NetworkOfPlans, regions: bool, configuration: str, patch: list[int] | None
) -> None:
    """Replace the network of a configuration, and adapt the batch size to the new network."""
    if "features_per_stage" in network.shared:
        _reducible_arguments(content["architecture"], configuration)
    content["architecture"] = _other_network(content["architecture"], network, regions, patch)
    if network.batch_size is not None:
        content["batch_size"] = network.batch_size
    if "batch_size" in content:
        content["batch_size"] = network.batch_of(content["batch_size"], content.get("patch_size"))


def _other_network(
    architecture: Mapping[str, Any], network: NetworkOfPlans, regions: bool, patch: list[int] | None
) -> dict[str, Any]:
    lacks = [key for key in network.shared if key not in architecture["arch_kwargs"]]
    if lacks:
        raise ValueError(
            f"{architecture['network_class_name'].rpartition('.')[2]} of the plans has no {', '.join(lacks)}, which "
            f"{network.class_name.rpartition('.')[2]} needs"
        )
    arguments = {key: architecture["arch_kwargs"][key] for key in network.shared}
    arguments |= network.keywords_of(str(arguments.get("conv_op")), patch)
    if network.knows_background:
        arguments["background"] = not regions
    return {"network_class_name": network.class_name, "arch_kwargs": arguments, "_kw_requires_import": ["conv_op"]}


def stage_widths(architecture: Mapping[str, Any]) -> list[int]:
    """Return the widths of the encoder stages that an ``architecture`` defines, highest resolution first."""
    arguments = architecture["arch_kwargs"]
    widths = arguments["features_per_stage"]
    return [widths] * arguments["n_stages"] if isinstance(widths, int) else list(widths)


def network_in_words(architecture: Mapping[str, Any]) -> str:
    """Describe an ``architecture`` for messages: its class and, if it has stages, their widths."""
    name = str(architecture["network_class_name"]).rpartition(".")[2]
    if name == "LibraryNetwork":
        return str(architecture["arch_kwargs"].get("network"))
    try:
        return f"{name}, {stage_widths(architecture)} channels"
    except KeyError:
        return name


def _reducible_arguments(architecture: dict[str, Any], configuration: str) -> dict[str, Any]:
    name = architecture["network_class_name"]
    if _class_name({"architecture": architecture}) not in REDUCIBLE_NETWORKS:
        raise ValueError(
            f"configuration {configuration} uses {name}, whose widths cannot be reduced: "
            f"students can be made of {', '.join(REDUCIBLE_NETWORKS)}"
        )
    arguments: dict[str, Any] = architecture["arch_kwargs"]
    arguments["features_per_stage"] = stage_widths(architecture)
    return arguments


def _check_widths(widths: Sequence[int], stages: int, configuration: str) -> None:
    if len(widths) != stages:
        raise ValueError(f"configuration {configuration} has {stages} stages, got {len(widths)} widths")
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"a stage of configuration {configuration} cannot have {width!r} channels")
