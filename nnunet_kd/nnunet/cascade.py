"""The first stage of a cascade, whose segmentations are an additional input of the second stage.

Validating a fold of the first stage writes the segmentations of that fold's validation cases, so the second stage needs
all folds of the first. The first stage of a student is not that of its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.nnunet.reading import read_splits


@dataclass(frozen=True)
class FirstStage:
    """The first stage of a cascade and the segmentations that it has written.

    Attributes:
        configuration: The configuration of the first stage.
        folder: The folder that holds its segmentations.
        cases: All preprocessed cases.
        missing: The cases that it has not segmented yet.
        commands: The commands that create the missing segmentations, one per fold.
    """

    configuration: str
    folder: Path
    cases: tuple[str, ...]
    missing: tuple[str, ...]
    commands: tuple[str, ...]

    @classmethod
    def of(cls, plans: Mapping[str, Any], configuration: str, trainer: str, plans_name: str) -> FirstStage | None:
        """Find the first stage that precedes a configuration, or return ``None`` if the configuration has none.

        Args:
            plans: The plans that contain the configuration and name the data set.
            configuration: The configuration of the second stage.
            trainer: The class name of the trainer of the first stage.
            plans_name: The name of the plans of the first stage.
        """
        if configuration not in plans["configurations"]:
            return None
        settings = PlansManager(dict(plans)).get_configuration(configuration)
        previous = settings.previous_stage_name
        if previous is None or not nnUNet_results.is_set() or not nnUNet_preprocessed.is_set():
            return None
        dataset = str(plans["dataset_name"])
        data = Path(nnUNet_preprocessed.require()) / dataset
        results = Path(nnUNet_results.require()) / dataset / f"{trainer}__{plans_name}__{previous}"
        folder = results / "predicted_next_stage" / configuration
        cases = sorted(path.stem for path in (data / settings.data_identifier).glob("*.pkl"))
        there = {path.stem for path in folder.glob("*.*")}
        missing = [case for case in cases if case not in there]
        commands = []
        for fold in _folds_of(missing, data / "splits_final.json"):
            trained = (results / f"fold_{fold}" / "checkpoint_final.pth").is_file()
            words = f"nnUNetv2_train {dataset} {previous} {fold} -tr {trainer} -p {plans_name}"
            commands.append(f"{words} --val" if trained else words)
        return cls(str(previous), folder, tuple(cases), tuple(missing), tuple(commands))


def _folds_of(cases: Sequence[str], splits: Path) -> list[int]:
    """Return the folds that validate any of these cases; all five of nnU-Net's if the splits do not exist yet."""
    try:
        folds = read_splits(splits)
    except (FileNotFoundError, ValueError):
        return [*range(5)] if cases else []
    wanted = {*cases}
    return [number for number, fold in enumerate(folds) if wanted & {*fold["val"]}]
