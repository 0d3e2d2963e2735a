"""The base of all trainers here: nnU-Net's trainer with a smaller student and distillation terms.

It is long because nnU-Net's life cycle is one class: every method is a hook of it, and what a hook computes is in the
modules beside this one.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunet_kd.distillation.step import LabelCodes, TrainStep, as_numbers, means, with_finite_loss
from nnunet_kd.distillation.student import StudentWithAdapters, adapters_of, check_network, in_fast_layout, shapes
from nnunet_kd.distillation.terms import Term
from nnunet_kd.networks.stages import EncoderStages
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import NETWORKS
from nnunet_kd.nnunet.reading import channel_names, read_splits
from nnunet_kd.nnunet.settings import BLOCK, SCHEDULE, Plans, with_leakage
from nnunet_kd.pruning.heads import Heads
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.training.checkpoint import plainly_laid_out, save_atomically
from nnunet_kd.training.ema import WeightAverage
from nnunet_kd.training.faults import SKIPPED, BatchCheck, SkippedSteps
from nnunet_kd.training.hard_loss import without_dice
from nnunet_kd.training.history import History
from nnunet_kd.training.interruption import LastEpoch, usual_save_every
from nnunet_kd.training.leakage import joined, soft_label_leakage, teacher_leakage
from nnunet_kd.training.loading import (
    NETWORK,
    START,
    TRAINING,
    VALIDATION,
    SeededBatches,
    checked,
    generators_left_alone,
    no_worker_processes,
    repeat_exactly,
    seed_everything,
    seeded_augmenter,
)
from nnunet_kd.training.preparation import (
    AttachedTeacher,
    Start,
    attach_soft_labels,
    attach_teacher,
    prepare,
    start_from_teacher,
)
from nnunet_kd.training.progress import append_terms
from nnunet_kd.training.refusals import said_last
from nnunet_kd.training.results import (
    CHECKPOINTS,
    Lock,
    check_results,
    go_on_from_end,
    keep_leakage,
    noted_leakage,
    refuse_finished,
    remove_aside,
    results_of,
    set_aside,
)
from nnunet_kd.training.schedules import CosineSchedule
from nnunet_kd.training.soft_labels import DatasetWithSoftLabels, split_batch, with_soft_labels
from nnunet_kd.training.start import (
    CHECKED,
    Patches,
    classes_there,
    describe,
    draw_patches,
    fit_start,
    head_names,
    patch_dice,
    patches_wanted,
)

SEGMENTATION = "segmentation"


class DistillationTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnU-Net is untyped
    """nnU-Net's trainer for a student: smaller widths, further loss terms, seeded and exactly resumable.

    What a subclass declares:

    Attributes:
        reduction: Where the plans name no student, one with widths divided by this is derived from them.
        terms: Loss terms beside nnU-Net's own, which plans can add to or replace; ``None``: none, whatever they say.
        recipe: Settings of the training that go with these terms: not used where the plans list others instead.
        network_of_plans: Key of :data:`nnunet_kd.nnunet.planning.NETWORKS`, for plans that name no student; ``None``
            keeps the network of the plans.
        method: Dataclass of ``nnunet_kd.method``, for a trainer that has settings of its own instead of terms.
        joint: What holds student and adapters.

    Settings come from the plan's ``nnunet_kd`` block, then from class attributes, then from nnU-Net and the losses.

    Raises:
        ValueError: For a block, a teacher or plans that do not fit, before anything is written.
        FileNotFoundError: Where the teacher is missing.
        NotImplementedError: For a network or combination that cannot be distilled.
    """

    reduction: ClassVar[float] = 4
    terms: ClassVar[tuple[Term, ...] | None] = None
    recipe: ClassVar[Mapping[str, Any]] = {}
    network_of_plans: ClassVar[str | None] = None
    method: ClassVar[type | None] = None
    joint: ClassVar[type[StudentWithAdapters]] = StudentWithAdapters

    @said_last
    def __init__(
        self,
        plans: Plans,
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        kind = type(self)
        self.preparation = prepare(kind, Experiment(plans, configuration, dataset_json), fold)
        self.attached: AttachedTeacher | None = None
        self.teacher_stages: EncoderStages | None = None
        self.start: Start | None = None
        self.average: WeightAverage | None = None
        self.soft_labels: SoftLabelStore | None = None
        self._resumes = False
        self._unaveraged: Mapping[str, Tensor] | None = None
        self._lock: Lock | None = None
        self._leakage: str | None = None
        self._split: tuple[list[str], list[str]] | None = None
        self._skipped = SkippedSteps()
        self._last_epoch = LastEpoch(self.print_to_log_file)
        self._history = History(self.preparation.record)
        if self.results is not None:
            check_results(self.results, self.preparation.student)
        if not self.has_checkpoint("checkpoint_final.pth"):
            self.soft_labels = attach_soft_labels(self.preparation)
            if self.preparation.needs_teacher:
                self._attach_teacher()
            if not self.has_begun():
                self._find_start()
        super().__init__(self.preparation.student.plans, configuration, fold, dataset_json, device)
        for key in SCHEDULE:
            value = getattr(self.preparation.settings.training, key)
            if value is not None:
                setattr(self, key, value)
        training = self.preparation.settings.training
        self._schedule = {key: getattr(training, key) or usual for key, usual in SCHEDULE.items()}
        self.seed = self.preparation.settings.training.seed
        self.label_codes = LabelCodes(self.label_manager)
        self._add_log_entries()
        self.set_up()

    def set_up(self) -> None:
        """The end of construction, for a trainer with settings of its own: nnU-Net insists on this very constructor."""

    def _current_schedule(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in SCHEDULE}

    def _follow_schedule(self) -> None:
        """Terms for the schedule another class has set since: a subclass, or a trainer of nnU-Net's beside this one."""
        schedule = self._current_schedule()
        changed = {key: value for key, value in schedule.items() if value != self._schedule[key]}
        if changed:
            self.preparation = self.preparation.rescheduled(type(self), changed)
            self._history = History(self.preparation.record)
            self._schedule = schedule
        if self.preparation.settings.training.save_every is None:
            self.save_every = self._schedule["save_every"] = usual_save_every(self.num_epochs)

    def has_checkpoint(self, name: str) -> bool:
        """Whether this training has saved such a file before.

        After the final one validation alone may be wanted, which needs no teacher.
        """
        return self.results is not None and (self.results / f"fold_{self.preparation.fold}" / name).is_file()

    @property
    def results(self) -> Path | None:
        """The folder of all folds of this training; ``None`` where ``nnUNet_results`` is not set."""
        return results_of(type(self).__name__, self.preparation.student)

    def _attach_teacher(self) -> AttachedTeacher:
        if self.attached is None:
            self.attached = attach_teacher(type(self), self.preparation)
            self.teacher_stages = self.attached.teacher.stages
        return self.attached

    def has_begun(self) -> bool:
        """Whether this training has saved anything before."""
        return any(self.has_checkpoint(name) for name in CHECKPOINTS)

    # ---- the network

    @said_last
    def initialize(self) -> None:
        """nnU-Net's, with the student and its adapters as the network."""
        self._follow_schedule()
        if self.preparation.reads_teacher_features and self.teacher_stages is None:
            self._attach_teacher()
        if self.seed is not None:
            seed_everything(self.seed, NETWORK)
        with self._building():
            super().initialize()
        student = self.trained().student
        if self.network_of_plans is not None:
            check_network(student, NETWORKS[self.network_of_plans].class_name, type(self).__name__)
        if not self._resumes:
            self.start_weights(student)
        decay = self.preparation.settings.training.ema_decay
        if decay is not None:
            self.average = WeightAverage(self.trained().student, decay)

    def start_weights(self, student: Any) -> None:
        """Weights that are not random; not called where a training goes on."""
        start = self._find_start()
        if start is not None:
            student.load_state_dict(start.weights)

    def _find_start(self) -> Start | None:
        """Initial weights, of a training that starts anew beside old checkpoints too."""
        if self.start is None and self.preparation.starts_from_teacher and not self._resumes:
            self.start = start_from_teacher(type(self), self.preparation)
        return self.start

    def _fit_start(self, weights: Mapping[str, Tensor], teacher: nn.Module) -> None:
        """Fit these initial weights to what the teacher makes of augmented training patches."""
        student = self.trained().student
        if any(not torch.equal(weight.cpu(), weights[name]) for name, weight in student.state_dict().items()):
            self.print_to_log_file("initial weights: others were loaded, these are not fitted to the teacher's outputs")
            return
        heads: Heads = "regions" if self.label_manager.has_regions else "classes"
        names = head_names(self.dataset_json["labels"], heads)
        trained = self.num_epochs * self.num_iterations_per_epoch * self.batch_size
        count = patches_wanted(trained, self.configuration_manager.patch_size)
        with no_worker_processes():
            loader = super().get_dataloaders()[0].data_loader
        drawn = SeededBatches(loader, self.seed or 0, START, rank=0, first=0, workers=1, check=self.batch_check())
        with generators_left_alone():
            batches = map(self._image_and_target, map(checked, drawn))
            patches = draw_patches(batches, count, self.batch_size, lambda at: classes_there(at, heads, len(names)))
            others = Patches.of(itertools.islice(batches, math.ceil(CHECKED / self.batch_size)))
        teacher = teacher.to(self.device)
        prune = self.preparation.settings.training.initial_weights == "pruned"
        fit_start(teacher, student, patches.images, prune=prune, heads=heads, log=self.print_to_log_file)
        if self.is_ddp:  # the same up to rounding
            for weight in student.state_dict().values():
                torch.distributed.broadcast(weight, 0)
        ignored = self.label_manager.ignore_label
        line, warning = describe(names, *(patch_dice(one, others, heads, ignored) for one in (teacher, student)))
        for text in filter(None, (line, warning)):
            self.print_to_log_file(text)

    def _image_and_target(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Of a batch, on the device, the target at the finest resolution."""
        images, target = self.on_device(batch)
        return images[:, : self.num_input_channels], target[0] if isinstance(target, list) else target

    @contextmanager
    def _building(self) -> Iterator[None]:
        """Let nnU-Net build, compile, optimise and wrap student and adapters where it would the plain network."""
        build_student = type(self).build_network_architecture  # type: ignore[misc, has-type]  # static, shadowed below

        def build(
            plans_manager: Any,
            configuration_manager: Any,
            num_input_channels: int,
            num_output_channels: int,
            enable_deep_supervision: bool = True,
        ) -> nn.Module:
            student = build_student(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
            student = in_fast_layout(student, self.device)
            preparation = self.preparation
            adapters = adapters_of(preparation.terms, student, self.teacher_stages)
            return self.joint(student, adapters, preparation.reads_features, preparation.reads_levels)

        self.build_network_architecture = build
        try:
            yield
        finally:
            del self.build_network_architecture

    def trained(self) -> StudentWithAdapters:
        """Student and adapters, without what compilation and DDP put around them."""
        network = self.network.module if self.is_ddp else self.network
        network = network._orig_mod if isinstance(network, OptimizedModule) else network
        assert isinstance(network, StudentWithAdapters)
        return network

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's, unless the settings ask for AdamW."""
        if self.preparation.settings.training.optimizer is None:
            usual: tuple[torch.optim.Optimizer, Any] = super().configure_optimizers()
            return usual
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr)
        return optimizer, CosineSchedule(optimizer, self.num_epochs)

    # ---- training

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders; seeded, each batch by its number, unless the seed is null."""
        if self.seed is None:
            loaders: tuple[Any, Any] = super().get_dataloaders()
            return loaders
        with no_worker_processes():
            train, val = super().get_dataloaders()
        workers = get_allowed_n_proc_DA()
        pin = self.device.type == "cuda"
        first = self.current_epoch * self.num_iterations_per_epoch
        first_val = self.current_epoch * self.num_val_iterations_per_epoch
        val_workers = max(1, workers // 2) if workers else 0
        rank, check = self.local_rank, self.batch_check()
        return (
            seeded_augmenter(train.data_loader, self.seed, TRAINING, rank, first, workers, pin, check),
            seeded_augmenter(val.data_loader, self.seed, VALIDATION, rank, first_val, val_workers, pin, check),
        )

    def batch_check(self) -> BatchCheck:
        """Of this training's images, soft labels and labels."""
        return BatchCheck(self.num_input_channels, self.label_manager)

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, the same from the check for leakage to the validation."""
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and splits.is_file():
            try:
                read_splits(splits)
            except ValueError as error:  # nnU-Net was killed when it wrote them
                raise ValueError(
                    f"{error}. If they are not your own, remove them: nnU-Net makes the same again"
                ) from None
        if self._split is None:
            self._split = super().do_split()
        return self._split

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's; training images carry soft labels where a term reads them."""
        train, val = super().get_tr_and_val_datasets()
        return (train if self.soft_labels is None else DatasetWithSoftLabels(train, self.soft_labels)), val

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's, for images that may carry soft labels."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.seed is not None:
            repeat_exactly(transforms)
        if self.soft_labels is None:
            return transforms
        return with_soft_labels(transforms, len(channel_names(self.dataset_json)))

    def _build_loss(self) -> nn.Module:
        """nnU-Net's; cross-entropy alone where a term asks for it."""
        loss: nn.Module = super()._build_loss()
        if any(getattr(term, "hard_loss", None) == "ce" for term in self.preparation.terms):
            without_dice(loss)
        return loss

    @said_last
    def run_training(self) -> None:
        """nnU-Net's; where it is stopped, the last finished epoch is saved."""
        if not self._resumes and not self.preparation.settings.training.overwrite:
            refuse_finished(Path(self.output_folder))
        writes = self.local_rank == 0 and not self.disable_checkpointing
        with self._last_epoch.saved_when_stopped(Path(self.output_folder)) if writes else nullcontext():
            super().run_training()

    def on_train_start(self) -> None:
        """Say what is distilled from what."""
        unfinished = self.current_epoch < self.num_epochs
        if self.local_rank == 0:
            self._lock = Lock(Path(self.output_folder))
        if unfinished and self.soft_labels is None:  # trained anew, or longer than the checkpoint that was there
            self.soft_labels = attach_soft_labels(self.preparation)
        attached = self._attach_teacher() if self.preparation.needs_teacher and unfinished else None
        self._find_start()
        leakage = self._leakage = self._note_leakage(attached, unfinished)
        super().on_train_start()
        if self.start is not None and self.start.teacher is not None:
            self._fit_start(self.start.weights, self.start.teacher)
            self.start = replace(self.start, teacher=None)
        if self._unaveraged is not None and unfinished:
            self.trained().student.load_state_dict(self._unaveraged, strict=False)  # counters of steps are not averaged
            self.print_to_log_file("no average any more: goes on from the last step's weights, not from their average")
        if self.average is not None and self.current_epoch == 0:  # weights may have changed since it was made
            self.average = WeightAverage(self.trained().student, self.average.decay)
        if leakage is not None:
            self.print_to_log_file(leakage)
        unread = not self.preparation.terms and self.method is None
        if self.preparation.settings.method and unread:  # so that NoKD can share its plans with a method
            self.print_to_log_file("nnunet_kd.method of the plans is not used: this trainer distils nothing")
        if attached is not None:
            attached.teacher.to(self.device)
        if unfinished:
            self.print_to_log_file(f"settings {json.dumps(self.preparation.record)}")
            for term in self.preparation.terms:
                self.print_to_log_file(f"distilling {term}")
        if unfinished and self.local_rank == 0 and not self.disable_checkpointing:
            folder = Path(self.output_folder)
            if self._resumes:
                go_on_from_end(folder)
                self._save_best()
            elif earlier := set_aside(folder):
                self.print_to_log_file(f"of an earlier training, until this one has ended: {', '.join(earlier)}")

    def _note_leakage(self, attached: AttachedTeacher | None, unfinished: bool) -> str | None:
        """Put this fold's warning into the plans nnU-Net is about to save for all folds; the others' stay."""
        try:
            notes = noted_leakage(Path(self.output_folder_base))
        except ValueError as error:
            self.print_to_log_file(f"{error}: notes of leakage of other folds are lost")
            notes = {}
        fold = str(self.fold)
        if unfinished:
            _, validation = self.do_split()
            sources = (source for source in (attached, self.start) if source is not None)
            files = [one for source in sources for one in source.files]
            taught = teacher_leakage(self.preparation, files, validation) if files else None
            labels = self.soft_labels
            stored = None if labels is None else soft_label_leakage(self.preparation, labels, validation)
            before = notes.get(fold, "") if self._resumes else ""  # of epochs that stay in the student
            now = [note for note in (taught, stored) if note is not None and note not in before]
            warning = joined([before or None, *now])
        else:  # what was noted when it was trained holds
            warning = notes.get(fold, self.preparation.leakage)
        notes.pop(fold, None)
        if warning is not None:
            notes[fold] = warning
        noted = with_leakage(self.plans_manager.plans, notes)
        self.plans_manager.plans.clear()
        self.plans_manager.plans.update(noted)
        return warning

    def on_train_epoch_start(self) -> None:
        """Train the student's own weights, with random numbers that depend on the epoch alone."""
        if self.average is not None:
            self.average.hide()
        if self.seed is not None:
            seed_everything(self.seed, NETWORK, self.local_rank, self.current_epoch + 1)
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of nnU-Net with the terms added; every value leaves the device in one transfer."""
        images, target = self.on_device(batch)
        soft: Sequence[Tensor] | None = None
        if self.soft_labels is not None:
            images, *soft = split_batch(images, self.num_input_channels)

        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            logits, features, levels = self.network(images)
            segmentation = self.loss(logits, target)
            values, tuned = self._term_values(images, logits, features, levels, target, soft)
        share = 1.0
        total = torch.zeros_like(segmentation)
        for term in self.preparation.terms:
            weight = term.weight_at(self.current_epoch)
            share -= weight if term.convex else 0.0
            if term.name in values:
                total = total + weight * values[term.name]
        total = share * segmentation + sum(tuned.values(), total)
        if len(values) < len(self.preparation.terms) or self.frozen():
            # Adapters without a gradient would stop DDP, and would be treated differently by the optimizer.
            total = total + 0 * sum(parameter.sum() for parameter in self.trained().adapters.parameters())
        return self.optimize(total, {"loss": total, SEGMENTATION: segmentation, **values, **tuned})

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Images of a batch, and its target, a list under deep supervision."""
        target = batch["target"]
        if isinstance(target, list):
            moved: Any = [scale.to(self.device, non_blocking=True) for scale in target]
        else:
            moved = target.to(self.device, non_blocking=True)
        return batch["data"].to(self.device, non_blocking=True), moved

    def _term_values(
        self,
        images: Tensor,
        logits: Any,
        features: list[Tensor],
        levels: list[Tensor],
        target: Any,
        soft: Sequence[Tensor] | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Unweighted value of every term whose weight is not 0 in this epoch, and what terms still tune.

        The teacher runs once, as deep as these need, or not at all.
        """
        epoch = self.current_epoch
        active = [term for term in self.preparation.terms if term.weight_at(epoch) > 0]
        tuning = [term for term in self.preparation.terms if term.tunes_at(epoch)]
        if not active and not tuning:
            return {}, {}
        attached = None
        taught_logits: list[Tensor] = []
        taught: list[Tensor] = []
        if any(term.needs_teacher for term in (*active, *tuning)):
            attached = self._attach_teacher()
            taught_logits, taught = attached.teacher(images, any(term.reads_logits for term in active))
        step = TrainStep(
            student_logits=[logits] if isinstance(logits, Tensor) else list(logits),
            student_features=features,
            student_levels=levels,
            teacher_logits=taught_logits,
            teacher_features=taught,
            stages=[] if attached is None else attached.matched_stages,
            targets=target if isinstance(target, list) else [target],
            labels=self.label_codes,
            teacher=None if attached is None else attached.teacher,
            task_loss=self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss,
            soft_labels=None if soft is None else soft[0],
            soft_valid=None if soft is None else soft[1],
        )
        adapters: Any = self.trained().adapters
        return (
            {term.name: term(step, adapters[term.name]) for term in active},
            {str(term.tuning_name): term.tune(step, adapters[term.name]) for term in tuning},
        )

    def frozen(self) -> list[nn.Parameter]:
        """Parameters that must not move in this epoch; here some terms' adapters."""
        adapters: Any = self.trained().adapters
        return [p for term in self.preparation.terms for p in term.frozen(self.current_epoch, adapters[term.name])]

    def optimize(self, total: Tensor, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Backward pass, clipping and step, as nnU-Net's; a step whose gradients are not finite is skipped.

        Returns:
            The values as numbers, and whether the step was skipped.
        """
        if self.grad_scaler is not None:
            self.grad_scaler.scale(total).backward()
            self.grad_scaler.unscale_(self.optimizer)
        else:
            total.backward()  # type: ignore[no-untyped-call]
        for parameter in self.frozen():
            parameter.grad = None  # neither decayed nor moved by old momentum
        finite = torch.isfinite(torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12))
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)  # or not, as it found them
            self.grad_scaler.update()
        elif finite:
            self.optimizer.step()
        if self.average is not None:
            self.average.update()
        numbers = as_numbers({**values, SKIPPED: ~finite})
        self._skipped.watch(numbers)
        return numbers

    # ---- the log

    def logged_terms(self) -> list[str]:
        """nnU-Net's own loss, every term, and what terms tune first."""
        terms = self.preparation.terms
        return [SEGMENTATION, *(t.name for t in terms), *(t.tuning_name for t in terms if t.tuning_name is not None)]

    def _term_places(self) -> list[Any]:
        """What adapters and the optimizer's state depend on: names of the terms, in order, and their stages."""
        return [[term.name, getattr(term, "stages", None)] for term in self.preparation.terms]

    def _add_log_entries(self) -> None:
        logged = self.logger.local_logger.my_fantastic_logging
        for name in self.logged_terms():
            logged.setdefault(name, [])
        logged.setdefault(SKIPPED, [0] * self.current_epoch)  # an earlier checkpoint may not have it

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean of every term beside nnU-Net's loss; not a number while its weight is 0."""
        super().on_train_epoch_end(with_finite_loss(train_outputs))
        epoch_means = means(train_outputs, self.is_ddp)
        skipped = round(epoch_means[SKIPPED] * len(train_outputs))
        self.logger.log(SKIPPED, skipped, self.current_epoch)
        if skipped:
            self.print_to_log_file(f"skipped {skipped} of {len(train_outputs)} steps: their gradients were not finite")
        parts = []
        for name in self.logged_terms():
            self.logger.log(name, epoch_means.get(name, float("nan")), self.current_epoch)
            if name in epoch_means:
                parts.append(f"{name} {epoch_means[name]:.4g}")
        for term in self.preparation.terms:
            parts.append(f"weight of {term.name} {term.weight_at(self.current_epoch):.3g}")
        self.print_to_log_file(", ".join(parts))

    def on_train_end(self) -> None:
        """nnU-Net's; after it others may train here."""
        super().on_train_end()
        if self._lock is not None:
            try:
                keep_leakage(Path(self.output_folder_base), str(self.fold), self._leakage)
            except ValueError as error:  # the training is done, whatever becomes of the note
                self.print_to_log_file(f"{error}: the note of leakage may be lost")
            if not self.disable_checkpointing:
                remove_aside(Path(self.output_folder))
            self._lock.free()

    def on_epoch_end(self) -> None:
        """nnU-Net's, and the terms' curves below its ``progress.png``."""
        super().on_epoch_end()
        if self.local_rank == 0 and len(self.logged_terms()) > 1:
            logged = self.logger.local_logger.my_fantastic_logging
            append_terms(
                Path(self.output_folder) / "progress.png", {name: logged[name] for name in self.logged_terms()}
            )
        if self.local_rank == 0 and not self.disable_checkpointing:
            with self._in_ended_epoch():
                self._last_epoch.hold(self.checkpoint_content)

    def on_validation_epoch_start(self) -> None:
        """Validate, and then save, the averaged weights where there are any."""
        if self.average is not None:
            self.average.show()
        super().on_validation_epoch_start()

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint and, under a key of our own, what resuming needs beside it. Written atomically."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with self._last_epoch.saving(Path(filename)):
            save_atomically(self.checkpoint_content(), filename)

    def checkpoint_content(self) -> dict[str, Any]:
        """What nnU-Net saves, on the CPU, and what is our own."""
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        checkpoint: dict[str, Any] = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint["network_weights"] = plainly_laid_out(checkpoint["network_weights"])
        checkpoint[BLOCK] = self.own_state()
        return checkpoint

    @contextmanager
    def _in_ended_epoch(self) -> Iterator[None]:
        """As long as nnU-Net is in an epoch its checkpoints tell the next one."""
        self.current_epoch -= 1
        try:
            yield
        finally:
            self.current_epoch += 1

    def _save_best(self) -> None:
        """Where a training goes on from the best of its epochs: nnU-Net saves it as such after its usual save."""
        means = self.logger.local_logger.my_fantastic_logging["ema_fg_dice"]
        best: float | None = self._best_ema  # type: ignore[has-type]
        if means and (best is None or means[-1] > best):
            self._best_ema = means[-1]
            with self._in_ended_epoch():
                self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))

    def own_state(self) -> dict[str, Any]:
        """What resuming needs beside nnU-Net's checkpoint."""
        return {
            **self._history.state(self.current_epoch + 1),
            "adapters": self.trained().adapters.state_dict(),
            "terms": self._term_places(),
            "teacher_stages": None if self.teacher_stages is None else asdict(self.teacher_stages),
            "average": None if self.average is None else self.average.state_dict(),
            "average_shown": self.average is not None and self.average.shown,
        }

    @said_last
    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Student, adapters, optimizer, average and log of a saved training."""
        saved = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False, mmap=True).get(BLOCK)
        if saved is None:
            raise ValueError(f"{filename_or_checkpoint} was not written by a trainer of nnunet_kd: train without --c")
        if saved.get("terms", self._term_places()) != self._term_places():
            before, now = (", ".join(name for name, _ in places) for places in (saved["terms"], self._term_places()))
            raise ValueError(
                f"this training was begun with other terms or stages ({before or 'none'}) than nnunet_kd.method of the "
                f"plans has now ({now or 'none'}): restore it, or train anew without --c"
            )
        begun = saved.get("record", self.preparation.record).get("optimizer")
        if begun != self.preparation.settings.training.optimizer:  # its state is of other moments
            raise ValueError(
                f"this training was begun with {begun or 'SGD'} as its optimizer, which nnunet_kd.training of the "
                "plans no longer has: restore it, or train anew without --c"
            )
        self._resumes = True
        if self.teacher_stages is None and saved["teacher_stages"] is not None:
            self.teacher_stages = EncoderStages(**saved["teacher_stages"])
        if not self.was_initialized:
            self.initialize()
        if shapes(saved["adapters"]) != shapes(self.trained().adapters.state_dict()):
            raise ValueError(
                "this training was begun with other options of its terms, which need other adapters, than "
                "nnunet_kd.method of the plans has now: restore it, or train anew without --c"
            )
        super().load_checkpoint(filename_or_checkpoint)
        self.load_own_state(saved)
        self._add_log_entries()
        self._history.resume(saved, self.current_epoch)
        changes = self.preparation.changes(saved["record"]) if "record" in saved else ""
        if changes and self.current_epoch < self.num_epochs:
            self.print_to_log_file(f"goes on with other settings than it was begun with: {changes}")
        elif changes:
            self.print_to_log_file(f"was trained with other settings than the plans have now: {changes}")

    def load_own_state(self, saved: Mapping[str, Any]) -> None:
        """What :meth:`own_state` saved, once network and optimizer are there."""
        self.trained().adapters.load_state_dict(saved["adapters"])
        if self.average is not None and saved["average"] is not None:
            self.average.load_state_dict(saved["average"], saved["average_shown"])
        elif self.average is not None:  # asked for since: starts from the weights just loaded
            self.average = WeightAverage(self.trained().student, self.average.decay)
        elif saved["average_shown"]:  # no longer asked for: what it was made of is needed where training goes on
            self._unaveraged = saved["average"]
