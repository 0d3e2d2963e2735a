"""What a study will cost: its trainings, hours and disk space, from measured epochs or a probe of twenty steps."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.settings import BLOCK, SCHEDULE
from nnunet_kd.storage.writing import write_whole
from nnunet_kd.study.epoch_times import EpochTimes, epoch_times, in_words
from nnunet_kd.study.runs import Run
from nnunet_kd.study.study import Study
from nnunet_kd.study.trainings import FINAL, Training

_STEPS = 10  # of each of the two epochs of a probe; the first one warms up
_COPIES = 3  # of the weights in a checkpoint, and checkpoints of a training


@dataclass(frozen=True)
class Forecast:
    """What one training will cost.

    Attributes:
        training: The training.
        epochs: The number of epochs that are left.
        seconds: The duration of an epoch in seconds; ``None`` if nobody has measured one.
        source: Where that was measured.
        bytes: The disk space of its checkpoints that it does not have yet.
    """

    training: Training
    epochs: int
    seconds: float | None
    source: str
    bytes: int

    @property
    def hours(self) -> float | None:
        """The hours that are left, without the validation at the end."""
        return None if self.seconds is None else self.epochs * self.seconds / 3600


def forecast(study: Study, runs: Sequence[Run], probe: bool) -> list[Forecast]:
    """Return what the trainings of a study will cost.

    Args:
        study: The study.
        runs: Its trainings.
        probe: Whether to measure trainers that have no log by twenty steps each, on this machine.
    """
    probed: dict[tuple[str, str], float | None] = {}
    found = []
    for run in runs:
        training = study.training(run)
        epochs = training.epochs or int(SCHEDULE["num_epochs"])
        times, source = _measured(study, run, training)
        seconds = None if times is None else times.seconds
        key = (run.trainer, run.plans.partition("_seed")[0])
        if seconds is None and probe and not training.is_done:
            if key not in probed:
                probed[key] = probe_seconds(study, run, training)
            seconds, source = probed[key], "probe of 20 steps"
        done = epochs if training.is_done else _epochs_done(study, training)
        space = 0 if training.is_done else _space(study, run)
        found.append(Forecast(training, max(0, epochs - done), seconds, source if seconds is not None else "", space))
    return found


def _measured(study: Study, run: Run, training: Training) -> tuple[EpochTimes | None, str]:
    """Return the epochs that nnU-Net has logged of a training, or else of another one by the same trainer."""
    own = sorted(training.fold.glob("training_log_*.txt"), reverse=True)
    same = sorted(study.results.glob(f"{run.trainer}__{run.plans.partition('_seed')[0]}*__{study.configuration}"))
    others = [path for folder in same for path in sorted(folder.glob("fold_*/training_log_*.txt"), reverse=True)]
    for path in (*own, *others):
        times = epoch_times(path)
        if times is not None and times.seconds is not None:
            return (
                times,
                "own log" if path in own else f"log of {path.parents[1].name.split('__')[1]} {path.parent.name}",
            )
    return None, ""


def _epochs_done(study: Study, training: Training) -> int:
    """Return the epochs that a stopped training will not repeat, as far as its log tells."""
    if not any(training.fold.glob("checkpoint_*.pth")):
        return 0
    times = [epoch_times(path) for path in sorted(training.fold.glob("training_log_*.txt"))]
    return max((one.epoch for one in times if one is not None), default=0)


def _space(study: Study, run: Run) -> int:
    """Return the bytes of a training's checkpoints: those of another fold, or from the number of weights."""
    sizes = [path.stat().st_size for path in study.folder_of(run).glob(f"fold_*/{FINAL}")]
    if sizes:
        return _COPIES * max(sizes)
    try:
        trainer = find_trainer(run.trainer)
        preparation = study.prepared(run)
        plans = Experiment(study.plans_of(run), study.configuration, study.dataset_json)
        network = build_network(trainer, plans if preparation is None else preparation.student)
    except (ValueError, NotImplementedError):  # its training will say so
        return 0
    return _COPIES * _COPIES * sum(4 * weights.numel() for weights in network.parameters())


def probe_seconds(study: Study, run: Run, training: Training) -> float | None:
    """Train two epochs of ten steps in a temporary folder, and return the seconds of an epoch of the schedule.

    Returns:
        ``None`` if the trainer takes no schedule from plans, as nnU-Net's own, or its training fails.
    """
    if study.prepared(run) is None:
        return None
    plans = study.plans_of(run)
    short = {"num_epochs": 2, "num_iterations_per_epoch": _STEPS, "num_val_iterations_per_epoch": _STEPS // 5}
    steps = study.schedule_of(run).num_iterations_per_epoch or int(SCHEDULE["num_iterations_per_epoch"])
    plans.setdefault(BLOCK, {}).setdefault("training", {}).update(short)
    own = study.folder_of(run).name
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for variable, source, skipped in (
            ("nnUNet_preprocessed", study.preprocessed, f"{run.plans}.json"),
            ("nnUNet_results", study.results, own),
        ):
            target = folder / variable / study.dataset
            target.mkdir(parents=True)
            for path in source.iterdir() if source.is_dir() else ():
                if path.name != skipped:
                    (target / path.name).symlink_to(path)
        write_whole(folder / "nnUNet_preprocessed" / study.dataset / f"{run.plans}.json", json.dumps(plans))
        variables = {one: str(folder / one) for one in ("nnUNet_preprocessed", "nnUNet_results")}

        def enough(line: str) -> bool:
            if "Epoch time: " in line:
                lines.append(line)
            return len(lines) == 2

        log = f"probe_{training.log}"
        try:
            study.commands.run(log, *training.words, epochs=2, variables=variables, until=enough)
        except RuntimeError as error:
            study.commands.say(f"{training.name} could not be measured: {error}")
            return None
    return float(lines[1].rpartition("Epoch time: ")[2].split()[0]) / _STEPS * steps


def forecast_table(forecasts: Sequence[Forecast], devices: int) -> str:
    """Return the trainings with their commands, hours and disk space, and the sums.

    Args:
        forecasts: The trainings.
        devices: The number of trainings at once.
    """
    lines = []
    for one in forecasts:
        state = "done" if one.training.is_done else f"{one.epochs} epochs left"
        time = "unknown" if one.hours is None else in_words(one.hours * 3600)
        cost = (
            "" if one.training.is_done else f", {time}{one.source and f' ({one.source})'}, {one.bytes / 2**20:.0f} MiB"
        )
        lines.append(f"{one.training.name}: {state}{cost}\n    {shlex.join(one.training.words)}")
    left = [one for one in forecasts if not one.training.is_done]
    known = [one.hours for one in left if one.hours is not None]
    lines.append(f"trainings left: {len(left)} of {len(forecasts)}; checkpoints need {_gib(left)} GiB of disk")
    if known:
        wall = _wall(known, devices)
        lines.append(
            f"measured: {len(known)}, which need {sum(known):.2f} hours of a device, {in_words(wall * 3600)} on "
            f"{devices}, without the fit of initial weights, validation and report"
        )
    if len(known) < len(left):
        lines.append(f"not measured: {len(left) - len(known)}; add --probe to measure 20 steps of each trainer")
    return "\n".join(lines)


def _gib(forecasts: Sequence[Forecast]) -> str:
    return f"{sum(one.bytes for one in forecasts) / 2**30:.2f}"


def _wall(hours: Sequence[float], devices: int) -> float:
    """Return when the last training ends if each device takes the longest one that is left."""
    ends = [0.0] * devices
    for length in sorted(hours, reverse=True):
        first = ends.index(min(ends))
        ends[first] += length
    return max(ends)
