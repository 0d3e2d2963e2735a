"""The lines that a training writes to its log before its first epoch."""

from __future__ import annotations

import json
from typing import Any

from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.nnunet.settings import names_teacher
from nnunet_kd.training.record import record_of


def announce(trainer: Any, leakage: str | None, unfinished: bool) -> None:
    """Log the distillation terms, the settings and any leakage of validation cases.

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
        for term in preparation.terms:
            say(f"distilling {term}")
        alone = _stages_alone(trainer) if trainer.distiller.stages else []
        if alone:
            say(f"encoder stages {alone} of the student are not distilled: the teacher has none on their grids")
        for line in trainer.unlabelled.lines() if trainer.unlabelled is not None else ():
            say(line)


def _stages_alone(trainer: Any) -> list[int]:
    """Return the student's encoder stages that have no counterpart in the teacher."""
    distilled = {student for student, _ in trainer.distiller.stages}
    return [stage for stage in range(len(encoder_stages(trainer.trained().student).widths)) if stage not in distilled]
