"""Find the preprocessed data set and open the experiment that ``-d``, ``-p`` and ``-c`` name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_kd.nnunet.dataset_names import dataset_number, is_dataset_name
from nnunet_kd.nnunet.networks_of_plans import NETWORKS, network_of_plans
from nnunet_kd.nnunet.planning import student_name
from nnunet_kd.nnunet.reading import read_plans
from nnunet_kd.nnunet.settings import read_settings

if TYPE_CHECKING:
    from nnunet_kd.nnunet.experiment import Experiment


def dataset_name(dataset: str) -> str:
    """Return the name of a data set.

    Args:
        dataset: The number, such as ``501``, or the name, such as ``Dataset501_Name`` or ``Dataset501``.

    Raises:
        ValueError: If it is neither, or if nnU-Net knows no data set with this number, or several.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    if is_dataset_name(dataset):
        return dataset
    if not dataset.isdecimal():
        raise ValueError(f"give a data set by its number or its name, such as 501 or Dataset501_Name, got {dataset!r}")
    names = [str(name) for name in find_candidate_datasets(int(dataset))]
    if not names:
        raise ValueError(f"nnU-Net knows no data set {dataset} in its three folders")
    if len(names) > 1:
        raise ValueError(f"nnU-Net has several data sets {dataset} in its three folders: {', '.join(names)}")
    return names[0]


def required(folder: Any, or_else: str = "") -> Path:
    """Return one of nnU-Net's three folders.

    Args:
        folder: One of the folders in ``nnunetv2.paths``.
        or_else: An alternative to setting the variable, appended to the message.

    Raises:
        ValueError: If the variable of the folder is not set.
    """
    if not folder.is_set():
        name = folder.env_var_name
        raise ValueError(f"{name} is not set: export {name}=/path/to/{name}{or_else}")
    return Path(folder.require())


def preprocessed_folder(dataset: str) -> Path:
    """Return the folder of a data set in ``nnUNet_preprocessed``.

    Args:
        dataset: The number or name of the data set.

    Raises:
        ValueError: As from :func:`required` and :func:`dataset_name`.
    """
    from nnunetv2.paths import nnUNet_preprocessed

    return required(nnUNet_preprocessed) / dataset_name(dataset)


def open_experiment(dataset: str, plans: str, configuration: str | None, trust: bool = False) -> Experiment:
    """Open the plans of a preprocessed data set; every command reads and checks them here.

    Args:
        dataset: The number or name of the data set.
        plans: The name of the plans, which is also that of their file.
        configuration: As for :meth:`nnunet_kd.nnunet.experiment.Experiment.open`.
        trust: Allow the plans to name any network; also for a caller that builds none.

    Raises:
        FileNotFoundError: If there are no such plans; the message has the command that makes them.
        ValueError: As from :func:`preprocessed_folder` and :meth:`~nnunet_kd.nnunet.experiment.Experiment.open`; also
            if the plans call themselves otherwise or their settings are not valid.
    """
    path = preprocessed_folder(dataset) / f"{plans}.json"
    if not path.is_file():
        raise FileNotFoundError(no_plans(path))

    from nnunet_kd.nnunet.experiment import Experiment

    experiment = Experiment.open(path, configuration, trust=trust)
    if experiment.plans["plans_name"] != plans:  # nnU-Net would mix up their results
        raise ValueError(f"{path} calls itself {experiment.plans['plans_name']}: set plans_name to {plans}")
    try:
        read_settings(experiment.plans)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return experiment


def no_plans(path: Path) -> str:
    """Say that plans are missing, with the command that makes them as far as their name tells.

    Args:
        path: The missing file in the folder of the data set.
    """
    return f"there are no plans {path}. Fix: {_command_for(path)}"


def _command_for(path: Path) -> str:
    number, name = dataset_number(path.parent.name), path.stem
    have = sorted(one.stem for one in path.parent.glob("*.json") if is_plans(one))
    residual = re.fullmatch(r"nnUNetResEncUNet(M|L|XL|)Plans", name)
    if residual is not None:
        planner = f"nnUNetPlannerResEnc{residual[1]}" if residual[1] else "ResEncUNetPlanner"
        return f"nnUNetv2_plan_and_preprocess -d {number} -pl {planner}"
    if not have or name == "nnUNetPlans":
        return f"nnUNetv2_plan_and_preprocess -d {number}"
    in_names = {network.replace(".", "_"): network for network in NETWORKS}
    for source in sorted(have, key=len, reverse=True):
        ends = rf"(?:_({'|'.join(in_names)})(_paper)?)?(?:_r(\d+(?:\.\d+)?))?"
        student = re.fullmatch(re.escape(source) + ends, name)
        if student is not None:
            named, paper, reduction = student.groups()
            network = in_names.get(named)
            if paper and NETWORKS[in_names[named]].paper is None:
                continue
            usual = 4 if network is None else network_of_plans(network, bool(paper)).usual_reduction
            if student_name(source, network, float(reduction or usual), paper=bool(paper)) != name:
                continue
            given = zip(("-p", "--network", "-r"), (source, network, reduction), strict=True)
            words = [f"{option} {value}" for option, value in given if value not in (None, "nnUNetPlans")]
            return " ".join([f"nnunet_kd plan -d {number}", *words, *(["--paper"] if paper else [])])
    return f"choose one of {', '.join(have)} with -p"


def is_plans(path: Path) -> bool:
    """Return whether a file holds plans."""
    try:
        read_plans(path)
    except (ValueError, OSError):
        return False
    return True
