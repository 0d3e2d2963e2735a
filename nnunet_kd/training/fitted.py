"""Fit a student's initial weights to its teacher's outputs on augmented training patches."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from nnunet_kd.pruning.heads import Heads
from nnunet_kd.teachers.adaptation import AdaptedTeacher
from nnunet_kd.training.loading import START, SeededBatches, checked, generators_left_alone, no_worker_processes
from nnunet_kd.training.sources import Start
from nnunet_kd.training.start import (
    CHECKED,
    Patches,
    classes_there,
    describe,
    draw_patches,
    fit_start,
    have_reference,
    head_names,
    patch_dice,
    patches_wanted,
    segmented,
)


def fit_to_teacher(trainer: Any, start: Start) -> None:
    """Fit the initial weights of a trainer's student, and log how good they are.

    Nothing happens if the settings do not ask for fitting, or if other weights have been loaded since. Drawing the
    patches does not change the state of the random number generators.

    Args:
        trainer: The trainer that holds the data and the student.
        start: The initial weights. Their teacher is removed from the object.
    """
    teacher = start.take_teacher()
    if teacher is None:
        return
    student, say = trainer.trained().student, trainer.print_to_log_file
    if any(not torch.equal(weight.cpu(), start.weights[name]) for name, weight in student.state_dict().items()):
        say("initial weights: others were loaded, so nothing is fitted to the teacher's outputs")
        return
    heads: Heads = "regions" if trainer.label_manager.has_regions else "classes"
    names = head_names(trainer.dataset_json["labels"], heads)
    trained = trainer.num_epochs * trainer.num_iterations_per_epoch * trainer.batch_size
    count = patches_wanted(trained, trainer.configuration_manager.patch_size)
    ignored = trainer.label_manager.ignore_label
    teacher = teacher.to(trainer.device)
    adaptation = start.adaptation
    answering = teacher if adaptation is None else AdaptedTeacher(teacher, adaptation)
    if differences := adaptation.describe() if adaptation is not None else []:
        say(f"initial weights: the teacher has {'; '.join(differences)}")

    def with_answers(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace the target of patches without reference by the teacher's segmentation."""
        images, target = batch
        unknown = ~have_reference(target, heads, ignored)
        if unknown.any():
            target = target.clone()
            target[unknown] = segmented(answering, images[unknown], heads, ignored).to(target)
        return images, target

    with no_worker_processes():
        loader = trainer.stock_dataloaders()[0].data_loader
    drawn = SeededBatches(loader, trainer.seed or 0, START, rank=0, first=0, workers=1, check=trainer.batch_check())
    with generators_left_alone():
        batches = (_image_and_target(trainer, checked(batch)) for batch in drawn)
        known = map(with_answers, batches)
        patches = draw_patches(known, count, trainer.batch_size, lambda at: classes_there(at, heads, len(names)))
        others = Patches.of(itertools.islice(batches, math.ceil(CHECKED / trainer.batch_size)))
    prune = trainer.preparation.settings.training.initial_weights == "pruned"
    seen = None if adaptation is None else [adaptation.images(images, teacher) for images in patches.images]
    fit_start(
        teacher,
        student,
        patches.images,
        prune=prune,
        heads=heads,
        log=say,
        mapped=start.mapped,
        teacher_patches=seen,
    )
    if trainer.is_ddp:  # processes may differ by rounding
        for weight in student.state_dict().values():
            torch.distributed.broadcast(weight, 0)
    agreement = not any(have_reference(target, heads, ignored).any() for target in others.targets)
    if agreement:
        others = Patches.of(map(with_answers, zip(others.images, others.targets, strict=True)))
    theirs, ours = (patch_dice(one, others, heads, ignored) for one in (answering, student))
    line, warning = describe(names, theirs, ours, agreement)
    if trainer.sources.soft_labels is not None and trainer.unlabelled.training:
        line += "; without a reference, the soft labels take its place"
    for text in filter(None, (line, warning)):
        say(text)


def _image_and_target(trainer: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of a batch and its target at the finest scale, both on the device.

    The soft labels of cases that learn from these alone are their target.
    """
    images, target = trainer.on_device(batch)
    finest, channels = target[0] if isinstance(target, list) else target, trainer.num_input_channels
    if trainer.sources.soft_labels is not None:
        finest = trainer.unlabelled.taught(batch["keys"], finest, images[:, channels:-1], trainer.distiller.labels)
    return images[:, :channels], finest
