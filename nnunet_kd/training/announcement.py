"""The lines that a training writes to its log before its first epoch, after it, and at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.nnunet.settings import names_teacher
from nnunet_kd.teachers.find import TeacherFiles
from nnunet_kd.teachers.leakage import validated_cases
from nnunet_kd.training.record import record_of
from nnunet_kd.training.sources import teacher_files

_EDGE = "+" + 98 * "-"
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def announce(trainer: Any, leakage: str | None, unfinished: bool) -> None:
    """Log what is trained, the settings and any leakage of validation cases.

    Args:
        trainer: The trainer whose log receives the lines.
        leakage: A warning about leakage, or ``None`` if nothing has leaked.
        unfinished: Whether any epochs remain to be trained.
    """
    say, preparation = trainer.print_to_log_file, trainer.preparation
    if leakage is not None:
        say(leakage)
    unread = not preparation.terms and preparation.method is None
    if preparation.settings.method and unread:  # not an error: NoKD can share its plans with a method
        say("nnunet_kd.method of the plans is not used: this trainer distils nothing")
    random = not preparation.starts_from_teacher and preparation.vmamba is None
    if unfinished and trainer.starts_from_named_teacher and random:
        if names_teacher(trainer.plans_manager.plans):
            say("initial weights: random, as nnunet_kd.training.initial_weights of the plans says")
        else:
            say(
                "initial weights: random; a student starts as its pruned teacher if nnunet_kd.teacher of the plans "
                "names it"
            )
    if unfinished:
        say(f"settings {json.dumps(record_of(preparation))}")
        _say_box(trainer, _plan(trainer))
        for line in trainer.unlabelled.lines() if trainer.unlabelled is not None else ():
            say(line)


def announce_pace(trainer: Any) -> None:
    """Log how long the remaining epochs will take, judging by the epoch that has just ended."""
    logged = trainer.logger.local_logger.my_fantastic_logging
    seconds = logged["epoch_end_timestamps"][-1] - logged["epoch_start_timestamps"][-1]
    left = trainer.num_epochs - trainer.current_epoch
    if left > 0:
        others = f"the other {left} take" if left > 1 else "the last one takes"
        trainer.print_to_log_file(
            f"at the pace of this epoch, {others} {_duration(left * seconds)}; the first epoch of a run is often its "
            "slowest"
        )


def announce_end(trainer: Any) -> None:
    """Log where the student is, its Dice beside the teacher's, and the commands that come next."""
    if trainer.local_rank == 0 and not trainer.disable_checkpointing:
        _say_box(trainer, _result(trainer))


def _say_box(trainer: Any, lines: Iterator[tuple[str, str]]) -> None:
    rows = [f"| {name:<12}{text}".rstrip() for name, text in lines]
    trainer.print_to_log_file("\n".join(["", _EDGE, *rows, _EDGE]), add_timestamp=False)


def _plan(trainer: Any) -> Iterator[tuple[str, str]]:
    """Yield what is about to be trained, as names and texts."""
    preparation, sources = trainer.preparation, trainer.sources
    student = sum(parameter.numel() for parameter in trainer.trained().student.parameters())
    counts = list(sources.parameters.values())
    share = f", 1/{sum(counts) / len(counts) / student:.3g} of the teacher's" if counts else ""
    yield "student", f"{student:,} parameters{share}"
    for teacher in _teachers(trainer):
        dice = _validation_dice(teacher.checkpoint.parent)
        known = "" if dice is None else f"; Dice of its own validation {dice:.3f}"
        yield "teacher", f"{teacher.checkpoint}{known}"
    if sources.soft_labels is not None:
        yield "teacher", f"soft labels stored in {sources.soft_labels.folder}"
    for term in preparation.terms:
        yield "loss", f"distilling {term}"
    alone = _stages_alone(trainer)
    if alone:
        yield "", f"encoder stages {alone} of the student are not distilled: the teacher has none on their grids"
    if not preparation.terms and preparation.method is None:
        yield "loss", "nnU-Net's own" + (", from initial weights of the teacher's" if sources.start is not None else "")
    left = trainer.num_epochs - trainer.current_epoch
    resumed = f", of which {left} are left" if left < trainer.num_epochs else ""
    yield "epochs", f"{trainer.num_epochs} of {trainer.num_iterations_per_epoch} iterations{resumed}"
    yield "time", "the log says how long the rest will take when the next epoch has ended"


def _stages_alone(trainer: Any) -> list[int]:
    """Return the student's encoder stages that have no counterpart in a teacher whose features are compared."""
    distilled = {student for student, _ in trainer.distiller.stages}
    if not distilled:
        return []
    return [stage for stage in range(len(encoder_stages(trainer.trained().student).widths)) if stage not in distilled]


def _result(trainer: Any) -> Iterator[tuple[str, str]]:
    """Yield what has been trained and what can be done with it, as names and texts."""
    folder = Path(trainer.output_folder)
    plans = trainer.plans_manager
    name = type(trainer).__name__
    yield "student", f"{folder} (checkpoint_final.pth; stock nnU-Net reads it)"
    dice = _validation_dice(folder)
    if dice is not None:
        over = f"mean over {_cases(len(trainer.do_split()[1]))} and all structures"
        seen = "; it has trained on these cases, for fold all holds none out" if trainer.fold == "all" else ""
        yield "Dice", f"{dice:.3f}, {over}{seen}"
    cases = validated_cases(folder)
    for teacher in _teachers(trainer):
        theirs = _validation_dice(teacher.checkpoint.parent)
        if theirs is not None:
            which = "the same cases" if teacher.kept_back == cases else "its own validation cases, which are others"
            yield "" if dice is not None else "Dice", f"{theirs:.3f} is the teacher's, of {which}"
    dataset = plans.dataset_name
    model = ["-d", dataset, "-c", trainer.configuration_name, "-f", str(trainer.fold), "-p", plans.plans_name]
    of_trainer = ["-tr", name, *model]
    device = [] if trainer.device.type == "cuda" else ["-device", trainer.device.type]
    yield "next", _command("nnUNetv2_predict", *of_trainer, "-i", "IMAGES", "-o", "SEGMENTATIONS", *device)
    if plans.get_configuration(trainer.configuration_name).previous_stage_name is None:
        yield "", _command("nnunet_kd", "export", "onnx", *of_trainer, "-o", "student_onnx")
    yield "", _command("nnunet_kd", "export", "nnunet", *of_trainer, "-o", "student.zip")
    if trainer.fold != "all" and name != "nnUNetTrainerNoKD" and dice is not None:
        methods = ["-m", "NoKD", name.removeprefix("nnUNetTrainer")]
        device = device if device == ["-device", "cpu"] else []  # compare finds a GPU by itself
        yield "", _command("nnunet_kd", "compare", *model, *methods, "-o", "study", *device)


def _cases(count: int) -> str:
    return f"the {count} validation cases" if count > 1 else "the only validation case"


def _teachers(trainer: Any) -> list[TeacherFiles]:
    """Return the files of the teachers, also of one that gave the initial weights before the training was resumed."""
    found: list[TeacherFiles] = trainer.sources.teachers
    if not found and trainer.preparation.uses_teacher:
        with suppress(FileNotFoundError, ValueError):
            found = teacher_files(trainer.preparation)
    return found


def _command(*words: str) -> str:
    return " ".join(map(quote, words))


def _validation_dice(fold: Path) -> float | None:
    """Return the mean Dice of nnU-Net's validation of a fold, or ``None`` if there is none."""
    try:
        dice = float(read_json(fold / "validation" / "summary.json")["foreground_mean"]["Dice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if math.isnan(dice) else dice


def _duration(seconds: float) -> str:
    """Return a duration in the two largest of its units, as in ``3 h 20 min``."""
    whole = max(round(seconds), 1)
    for (unit, length), (smaller, part) in pairwise(_UNITS):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
