"""The plans of one training of a study: those of the study, with the network, the settings and the seed of the run."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.networks_of_plans import NETWORKS, NetworkOfPlans
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.settings import BLOCK, Plans, check_keys, read_settings

if TYPE_CHECKING:
    from nnunet_kd.study.runs import Run


def plans_of_run(run: Run, plans: Plans, configuration: str, regions: bool) -> Plans:
    """Return the plans of a run: given plans, teacher and widths included, with what the run changes.

    Args:
        run: The run.
        plans: The plans that the run's row names, or else those of the study; they are not modified.
        configuration: The configuration that is trained.
        regions: Whether the labels of the data set are regions.

    Raises:
        ValueError: If the network cannot be had with these plans.
    """
    if run.plans == plans["plans_name"]:
        return deepcopy(plans)
    settings = read_settings(plans)
    source = (settings.student.source_plans if settings.student else None) or plans["plans_name"]
    changed = _with_network(plans, run, configuration, regions) if run.network.differs else deepcopy(plans)
    block = changed.setdefault(BLOCK, {})
    if settings.student is not None and settings.student.source_plans == plans["plans_name"]:
        block["student"]["source_plans"] = None  # not reduced yet, so the training must reduce it under its own name
    teachers = block.setdefault("teacher", {})
    for teacher in teachers if isinstance(teachers, list) else [teachers]:
        if teacher.get("plans") is None and teacher.get("folder") is None:
            teacher["plans"] = source
    for section, values in run.settings.items():
        block[section] = {**block.get(section, {}), **values}
    if run.seed is not None:
        block.setdefault("training", {})["seed"] = run.seed
    changed["plans_name"] = run.plans
    return changed


def _with_network(plans: Plans, run: Run, configuration: str, regions: bool) -> Plans:
    """Return a copy of plans with a run's network, which has the widths of a student that the plans already hold."""
    name, changed = run.network.name, deepcopy(plans)
    before = _architecture(plans, configuration, run)
    if name is not None and not _is(before, NETWORKS[name]):
        student = plans.get(BLOCK, {}).get("student")
        reduction = NETWORKS[name].usual_reduction if student is None else 1
        changed = student_plans(plans, reduction, network=name, regions=regions, trained=configuration)
        if student is not None:
            changed[BLOCK]["student"] = deepcopy(student)
    _architecture(changed, configuration, run)["arch_kwargs"].update(deepcopy(dict(run.network.arch_kwargs)))
    return changed


def _is(architecture: Mapping[str, Any], network: NetworkOfPlans) -> bool:
    """Return whether plans already have a network, perhaps with other keywords."""
    have, wanted = (architecture["arch_kwargs"].get("network"), network.keywords.get("network"))  # of a library
    return bool(architecture["network_class_name"] == network.class_name and have == wanted)


def _architecture(plans: Plans, configuration: str, run: Run) -> dict[str, Any]:
    """Return the network that plans define for a configuration, which may inherit it."""
    have, name = plans["configurations"], configuration
    check_keys({name: None}, have, f"the configurations of {run.method}")
    while "architecture" not in have[name] and have[name].get("inherits_from") in have:
        name = have[name]["inherits_from"]
    if "architecture" not in have[name]:
        raise ValueError(f"the plans of {run.method} have no network for {configuration}: plan the data set again")
    architecture: dict[str, Any] = have[name]["architecture"]
    return architecture
