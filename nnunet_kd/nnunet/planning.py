"""Student plans: plans are dictionaries in, new dictionaries out; nothing here touches a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from nnunet_kd.nnunet.settings import BLOCK, Plans, StudentSettings, check_keys

# Networks whose widths are `features_per_stage`, by the last part of `network_class_name`.
REDUCIBLE_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet", "DRAUNet", "VMUNet")

RECIPE = "nnUNetTrainerKD"  # for students of nnU-Net's own networks


@dataclass(frozen=True)
class NetworkOfPlans:
    """A network of this package, as plans name it.

    Attributes:
        class_name: Importable.
        shared: Keywords it takes over from the plans' own network; with ``features_per_stage`` it has the teacher's
            stages.
        keywords: Further ones.
        multiple: Of the patch's sides, which are enlarged to the next one.
        training: What its paper trains it with, for the block.
        slices_only: It has no 3-D form: other configurations are left out.
        knows_background: It has the keyword ``background``: whether the first output channel is.
        batch_size: Of its paper, instead of the plans'.
        largest_batch: Of the plans' batch no more: nnU-Net sized it for a U-Net.
        trainer: Its usual one.
        first: What a person has to do before that can train it.
    """

    class_name: str
    shared: tuple[str, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    slices_only: bool = False
    knows_background: bool = False
    batch_size: int | None = None
    largest_batch: int | None = None
    trainer: str = "nnUNetTrainerDCD"
    first: str | None = None
    multiple: int = 1
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def reducible(self) -> bool:
        """Whether a factor makes it smaller."""
        return "features_per_stage" in (*self.shared, *self.keywords)

    @property
    def usual_reduction(self) -> float:
        """DCD's where it has the teacher's widths; else that of its paper, none."""
        return 4 if "features_per_stage" in self.shared else 1


_QUARTER = {"strides": [[1, 1], [4, 4], [4, 4]]}  # nnunet_kd.networks.output_scales says why

NETWORKS = {
    "dra_unet": NetworkOfPlans(
        "nnunet_kd.networks.dra_unet.DRAUNet",
        ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides"),
    ),
    "kd_sam": NetworkOfPlans(
        "nnunet_kd.networks.kd_sam.KDSAM",
        ("conv_op",),
        _QUARTER,
        slices_only=True,
        knows_background=True,
        batch_size=16,
        trainer="nnUNetTrainerKDSAM",
        first='name SAM\'s weights in its nnunet_kd block: "method": {"checkpoint": "FILE"}',
    ),
    "brainseg_dmif": NetworkOfPlans(
        "nnunet_kd.networks.brainseg_dmif.BrainSegDMIF",
        ("conv_op",),
        _QUARTER,
        slices_only=True,
        largest_batch=4,
        trainer="nnUNetTrainerBrainSegDMIF",
    ),
    "vm_unet": NetworkOfPlans(
        "nnunet_kd.networks.vm_unet.VMUNet",
        ("conv_op",),
        {"features_per_stage": [96, 192, 384, 768], "strides": [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]]},
        slices_only=True,
        largest_batch=32,
        trainer="nnUNetTrainerDualSelfKD",
        multiple=32,
        training={"optimizer": "adamw", "initial_lr": 0.001},
    ),
}


def usual_trainer(plans: Plans, configuration: str) -> str:
    """The trainer that goes with the network of a configuration: the recipe's, or that of a network of this package."""
    content = (plans["configurations"][name] for name in _with_ancestors(plans, configuration))
    name = next((one["architecture"]["network_class_name"] for one in content if "architecture" in one), None)
    return next((network.trainer for network in NETWORKS.values() if network.class_name == name), RECIPE)


def reduce_widths(widths: Sequence[int], reduction: float, min_features: int = 8) -> list[int]:
    """``max(width // reduction, min_features)``, but never wider than before."""
    exact = Fraction(str(reduction))  # 32 // 1.6 is 19 in binary
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
) -> Plans:
    """Plans of a student: the same preprocessing and topology, smaller widths in every configuration.

    Args:
        plans: Plans of the teacher; not changed.
        reduction: Factor r of DCD.
        min_features: Least width of a stage.
        widths: Configuration name -> widths of its stages, instead of the factor.
        name: ``plans_name`` of the result; the same name as before if left out.
        network: One of :data:`NETWORKS` instead of the teacher's: with the teacher's stages, strides, kernels and axes,
            or with its own, whose widths, where it has any, are divided by the factor.
        regions: Whether the data set's labels are regions, which some networks have to know.
        trained: The one configuration that is used: others whose networks are not known stay as they are.

    Raises:
        ValueError: For an architecture whose widths are not known, a wrong number of widths, a width below 1, or
            an unknown configuration or network.
    """
    check_keys({} if network is None else {network: None}, NETWORKS, "the networks")
    other = None if network is None else NETWORKS[network]
    widths = dict(widths or {})
    check_keys(widths, plans["configurations"], "widths by configuration")
    if other is not None and not other.reducible:
        if widths:
            raise ValueError(f"{network} does not have the stages of the plans: no widths can be given")
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
        if other is not None and "patch_size" in content:  # it may be inherited, with or without the network
            content["patch_size"] = [-(-int(side) // other.multiple) * other.multiple for side in content["patch_size"]]
        if configuration in widths and "architecture" not in content:
            raise ValueError(f"configuration {configuration} inherits its network from {content.get('inherits_from')}")
        if "architecture" not in content:
            if "inherits_from" in content:
                continue
            raise ValueError(
                f"configuration {configuration} has no 'architecture': plan the data set again with "
                "nnUNetv2_plan_experiment"
            )
        if other is not None:
            _change_network(content, other, regions, configuration)
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
    """A configuration, and those it inherits from."""
    names = [configuration]
    while names[-1] in plans["configurations"]:
        parent = plans["configurations"][names[-1]].get("inherits_from")
        if parent is None or parent in names:
            break
        names.append(parent)
    return names


def student_name(source: str, network: str | None, reduction: float, widths: Sequence[int] | None = None) -> str:
    """What plans of a student are called: their source, its network, and how they are smaller."""
    other = None if network is None else NETWORKS[network]
    own_size = other is not None and not (other.reducible and (widths or reduction != 1))
    size = None if own_size else ("w" + "_".join(map(str, widths)) if widths else f"r{reduction:g}")
    return "_".join(filter(None, [source, network, size]))


def _class_name(content: Mapping[str, Any]) -> str | None:
    """Of a configuration's own network, without its module."""
    return content["architecture"]["network_class_name"].rpartition(".")[2] if "architecture" in content else None


def _with_architectures(plans: Plans) -> Plans:
    """Plans of nnU-Net before 2.4, which named no architecture, as nnU-Net itself reads them today."""
    old = [name for name, content in plans["configurations"].items() if "UNet_class_name" in content]
    if not old:
        return plans
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    plans = deepcopy(plans)
    for name in old:
        plans["configurations"][name] = ConfigurationManager(plans["configurations"][name]).configuration
    return plans


def _of_slices(plans: Plans, network: str) -> dict[str, Any]:
    """Configurations whose network is 2-D, and those that inherit from them."""

    have = plans["configurations"]

    def convolution(name: str) -> str:
        family = (have[one] for one in _with_ancestors(plans, name) if one in have)
        content: Mapping[str, Any] = next((one for one in family if "architecture" in one), {})
        return str(content.get("architecture", {}).get("arch_kwargs", {}).get("conv_op"))

    kept = {name: deepcopy(content) for name, content in have.items() if convolution(name).endswith("2d")}
    if not kept:
        raise ValueError(f"{network} sees slices, and {plans['plans_name']} has no 2d configuration")
    return kept


def _change_network(content: dict[str, Any], network: NetworkOfPlans, regions: bool, configuration: str) -> None:
    """Of a configuration that has its own: another, with a batch that it can have."""
    if "features_per_stage" in network.shared:
        _reducible_arguments(content["architecture"], configuration)
    content["architecture"] = _other_network(content["architecture"], network, regions)
    if network.batch_size is not None:
        content["batch_size"] = network.batch_size
    if network.largest_batch is not None and "batch_size" in content:
        content["batch_size"] = min(content["batch_size"], network.largest_batch)


def _other_network(architecture: Mapping[str, Any], network: NetworkOfPlans, regions: bool) -> dict[str, Any]:
    lacks = [key for key in network.shared if key not in architecture["arch_kwargs"]]
    if lacks:
        raise ValueError(
            f"{architecture['network_class_name'].rpartition('.')[2]} of the plans has no {', '.join(lacks)}, which "
            f"{network.class_name.rpartition('.')[2]} takes over"
        )
    arguments = {key: architecture["arch_kwargs"][key] for key in network.shared} | deepcopy(network.keywords)
    if network.knows_background:
        arguments["background"] = not regions
    return {"network_class_name": network.class_name, "arch_kwargs": arguments, "_kw_requires_import": ["conv_op"]}


def stage_widths(architecture: Mapping[str, Any]) -> list[int]:
    """Widths of the encoder stages a plan's ``architecture`` asks for, highest resolution first."""
    arguments = architecture["arch_kwargs"]
    widths = arguments["features_per_stage"]
    return [widths] * arguments["n_stages"] if isinstance(widths, int) else list(widths)


def network_in_words(architecture: Mapping[str, Any]) -> str:
    """Of a plan's ``architecture``, for messages: its class and, where it has stages, their widths."""
    name = str(architecture["network_class_name"]).rpartition(".")[2]
    try:
        return f"{name}, {stage_widths(architecture)} channels"
    except KeyError:
        return name


def _reducible_arguments(architecture: dict[str, Any], configuration: str) -> dict[str, Any]:
    name = architecture["network_class_name"]
    if _class_name({"architecture": architecture}) not in REDUCIBLE_NETWORKS:
        raise ValueError(
            f"configuration {configuration} uses {name}, whose widths are not known here: "
            f"students are made of {', '.join(REDUCIBLE_NETWORKS)}"
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
