"""The base class of all trainers: nnU-Net's trainer with a smaller student and distillation terms.

Every method overrides a hook of nnU-Net's trainer. The neighbouring modules hold the computations.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunet_kd.distillation.average import WeightAverage
from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import Method
from nnunet_kd.distillation.step import SoftLabels
from nnunet_kd.distillation.student import StudentWithAdapters, check_adapters
from nnunet_kd.networks.stages import EncoderStages
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.networks_of_plans import NETWORKS
from nnunet_kd.nnunet.reading import channel_names
from nnunet_kd.nnunet.settings import BLOCK, SCHEDULE, Plans
from nnunet_kd.training.announcement import announce, announce_end, announce_pace
from nnunet_kd.training.checkpoint import begin_average, check_resumable, load_average, saved_state
from nnunet_kd.training.early_stopping import best_weights
from nnunet_kd.training.faults import SKIPPED
from nnunet_kd.training.fitted import fit_to_teacher
from nnunet_kd.training.gradient_shares import GradientShares
from nnunet_kd.training.hard_loss import without_dice
from nnunet_kd.training.interruption import usual_save_every
from nnunet_kd.training.joint_network import building_joint_network
from nnunet_kd.training.leakage_notes import keep_leakage, note_leakage
from nnunet_kd.training.loading import NETWORK, seed_everything
from nnunet_kd.training.numbers import SEGMENTATION, log_terms, with_finite_loss
from nnunet_kd.training.preparation import check_network, prepare
from nnunet_kd.training.progress import append_terms
from nnunet_kd.training.record import History, about_changes, record_of
from nnunet_kd.training.refusals import said_last
from nnunet_kd.training.results import check_results, has_checkpoints, results_of
from nnunet_kd.training.resumable import ResumableTrainer
from nnunet_kd.training.schedules import make_optimizer
from nnunet_kd.training.soft_labels import DatasetWithSoftLabels, split_batch, with_soft_labels
from nnunet_kd.training.sources import Sources
from nnunet_kd.training.unlabelled import UnlabelledCases, about_final_validation, find_unlabelled


class DistillationTrainer(ResumableTrainer):
    """Train a student with nnU-Net: narrower layers and additional loss terms, seeded and exactly resumable.

    A subclass sets the attributes of :class:`nnunet_kd.training.kind.TrainerKind`, and ``joint``, the module that holds
    student and adapters. The ``nnunet_kd`` block of the plans overrides class attributes, which override the defaults.

    Attributes:
        preparation: The settings and the student's plans.
        distiller: The distillation terms and the teacher.
        sources: The teachers, initial weights and soft labels that the student learns from.
        unlabelled: The cases without a reference; ``None`` before the data sets are opened.

    Raises:
        ValueError: If the block, the teacher or the plans do not fit; nothing has been written then.
        FileNotFoundError: If the teacher is missing.
        NotImplementedError: If the network or the combination of settings cannot be distilled.
    """

    reduction: ClassVar[float] = 4
    terms: ClassVar[tuple[Method, ...] | None] = None
    recipe: ClassVar[Mapping[str, Any]] = {}
    starts_from_named_teacher: ClassVar[bool] = False
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
        self.begin_life()
        kind: Any = type(self)
        self.preparation = prepare(kind, Experiment(plans, configuration, dataset_json), fold)
        self.distiller = Distiller.for_student(self.preparation.terms, self.preparation.student)
        if self.results is not None:
            check_results(self.results, self.preparation.student)
        self.sources = Sources(kind, self.preparation)
        self.unlabelled: UnlabelledCases | None = None
        self._leakage: str | None = None
        self._shares = GradientShares()
        self._pace_known = False
        self._history = History(record_of(self.preparation))
        if not self.has_begun():
            self.sources.attach(self.distiller, resumes=False)
        super().__init__(self.preparation.student.plans, configuration, fold, dataset_json, device)
        training = self.preparation.settings.training
        self.follow(training)
        self._schedule = {key: getattr(training, key) or usual for key, usual in SCHEDULE.items()}
        self._add_log_entries()
        self.set_up()

    def set_up(self) -> None:
        """Set up what a subclass needs; nnU-Net does not allow another constructor signature."""

    @property
    def results(self) -> Path | None:
        """The results folder that all folds share; ``None`` if ``nnUNet_results`` is not set."""
        return results_of(type(self).__name__, self.preparation.student)

    def has_begun(self) -> bool:
        """Return whether this fold has a checkpoint already."""
        return self.results is not None and has_checkpoints(self.results / f"fold_{self.preparation.fold}")

    def _follow_schedule(self) -> None:
        """Rebuild the terms if the schedule has changed after construction."""
        self.pass_over_cases()
        schedule = {key: getattr(self, key) for key in SCHEDULE}
        changed = {key: value for key, value in schedule.items() if value != self._schedule[key]}
        if changed:
            kind: Any = type(self)
            self.preparation = self.preparation.rescheduled(kind, changed)
            self.distiller.terms = self.preparation.terms
            self._history = History(record_of(self.preparation))
            self._schedule = schedule
        if self.preparation.settings.training.save_every is None:
            self.save_every = self._schedule["save_every"] = usual_save_every(self.num_epochs)

    # ---- the network

    @said_last
    def initialize(self) -> None:
        """Initialize as nnU-Net does, with the student and its adapters as the network."""
        self._follow_schedule()
        if not self.resumes:
            self.sources.attach(self.distiller, resumes=False)
        if self.seed is not None:
            seed_everything(self.seed, NETWORK)
        with building_joint_network(self):
            super().initialize()
        joint = self.trained()
        if self.network_of_plans is not None:
            check_network(joint.student, NETWORKS[self.network_of_plans].class_name, type(self).__name__)
        if not self.resumes:
            self.start_weights(joint.student)
        decay = self.preparation.settings.training.ema_decay
        if decay is not None:  # set after nnU-Net has made the optimizer, which must not train the average
            joint.average = WeightAverage(joint.student, decay)

    def start_weights(self, student: Any) -> None:
        """Load initial weights that are not random; not called when a training resumes."""
        if self.sources.start is not None:
            student.load_state_dict(self.sources.start.weights)
        self.sources.load_vmamba(student, self.print_to_log_file)

    def trained(self) -> StudentWithAdapters:
        """Return the student with its adapters, without the wrappers of compilation and DDP."""
        network = self.network.module if self.is_ddp else self.network
        network = network._orig_mod if isinstance(network, OptimizedModule) else network
        assert isinstance(network, StudentWithAdapters)
        return network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision of the student and of its weight average."""
        super().set_deep_supervision_enabled(enabled)
        average = self.trained().average
        if average is not None:
            average.network.decoder.deep_supervision = enabled  # type: ignore[union-attr]

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Make nnU-Net's optimizer and schedule, or those that the settings ask for."""
        training, usual = self.preparation.settings.training, super().configure_optimizers
        return make_optimizer(training, self.network, self.initial_lr, self.num_epochs, usual)

    def _build_loss(self) -> nn.Module:
        """Build nnU-Net's loss, reduced to cross-entropy if a term asks for it."""
        loss: nn.Module = super()._build_loss()
        if any(getattr(term, "hard_loss", None) == "ce" for term in self.preparation.terms):
            without_dice(loss)
        return loss

    # ---- the data

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return nnU-Net's data sets, with soft labels beside the images and the teacher for missing references."""
        train, val = super().get_tr_and_val_datasets()
        store = self.sources.soft_labels
        if self.unlabelled is None:
            self.unlabelled = find_unlabelled(self, train, val, store)
        train, val = self.unlabelled.stand_in(train, val)
        return (train if store is None else DatasetWithSoftLabels(train, store)), val

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the augmentation, adapted to images that carry soft labels."""
        transforms = super().get_training_transforms(*args, **kwargs)
        channels = len(channel_names(self.dataset_json))
        return transforms if self.sources.soft_labels is None else with_soft_labels(transforms, channels)

    # ---- training

    def on_train_start(self) -> None:
        """Attach the sources, fit the initial weights, and log what is distilled."""
        unfinished = self.unfinished
        self.lock_results()
        if unfinished:  # validation alone needs no teacher
            self.sources.attach(self.distiller, self.resumes)
        validation = self.do_split()[1] if unfinished else None
        self._leakage = note_leakage(self, self.sources, validation)
        super().on_train_start()
        if self.distiller.teacher is not None:
            self.distiller.teacher.settle(self.device, self._do_i_compile())
        if self.sources.start is not None:
            fit_to_teacher(self, self.sources.start)
        if unfinished:
            begin_average(self)
        announce(self, self._leakage, unfinished)
        if unfinished and self.writes:
            self.clear_way()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one training step with the terms added; all values leave the device in one transfer."""
        images, target = self.on_device(batch)
        soft_labels = unlabelled = None
        if self.sources.soft_labels is not None:
            images, soft_labels = split_batch(images, self.num_input_channels)
            if self.unlabelled is not None:
                target, unlabelled = self.unlabelled.in_step(batch["keys"], target, self.distiller.labels)
        adapters = self.trained().adapters
        of_batch = (images, target, soft_labels, unlabelled)
        self._shares.log(self, lambda: self._losses(self.trained(), *of_batch))
        self.optimizer.zero_grad(set_to_none=True)
        segmentation, losses = self._losses(self.network, *of_batch)
        total = self.distiller.total(segmentation, losses, self.current_epoch, adapters.parameters())
        numbers = self.optimize(total, {"loss": total, SEGMENTATION: segmentation, **losses})
        if (average := self.trained().average) is not None:
            average.update()
        return numbers

    def _losses(
        self, network: Any, images: Tensor, target: Any, soft_labels: SoftLabels | None, unlabelled: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return nnU-Net's loss and the distiller's, from a forward pass through ``network``."""
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            outputs = network(images)
            segmentation = self.loss(outputs.logits, target)
            losses = self.distiller(
                images,
                outputs,
                target,
                self.current_epoch,
                adapters=self.trained().adapters,
                task_loss=self.loss.loss if isinstance(self.loss, DeepSupervisionWrapper) else self.loss,
                soft_labels=soft_labels,
                unlabelled=unlabelled,
            )
        return segmentation, losses

    def on_train_epoch_start(self) -> None:
        """Begin an epoch, and note the terms whose weight rises above 0 in it."""
        super().on_train_epoch_start()
        self._shares.begin(self.distiller.terms, self.current_epoch)

    def frozen(self) -> list[nn.Parameter]:
        """Return the adapters' parameters that must not change in this epoch."""
        return self.distiller.frozen(self.current_epoch, self.trained().adapters)

    # ---- the log

    def logged_terms(self) -> list[str]:
        """Return the names of all logged losses: nnU-Net's own, every term's, and the tuning losses."""
        return [SEGMENTATION, *self.distiller.names]

    def _add_log_entries(self) -> None:
        logged = self.logger.local_logger.my_fantastic_logging
        for name in self.logged_terms():
            logged.setdefault(name, [])
        logged.setdefault(SKIPPED, [0] * self.current_epoch)  # missing in checkpoints of earlier versions

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log nnU-Net's loss and the mean of every term, which is NaN while the term's weight is 0."""
        super().on_train_epoch_end(with_finite_loss(train_outputs))
        weights = {term.name: term.weight_at(self.current_epoch) for term in self.preparation.terms}
        names = self.logged_terms()
        for line in log_terms(self.logger, self.current_epoch, names, train_outputs, weights, self.is_ddp):
            self.print_to_log_file(line)

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does, draw the terms' curves below its ``progress.png``, and say the pace once."""
        super().on_epoch_end()
        names = self.logged_terms()
        if self.local_rank == 0 and len(names) > 1:
            logged = self.logger.local_logger.my_fantastic_logging
            append_terms(Path(self.output_folder) / "progress.png", {name: logged[name] for name in names})
        if not self._pace_known:
            self._pace_known = True
            announce_pace(self)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, and say what its summary means and what comes next."""
        best = self.preparation.settings.training.final_validation == "best"
        with best_weights(self) if best else nullcontext():
            super().perform_actual_validation(save_probabilities)
        for line in about_final_validation(self):
            self.print_to_log_file(line)
        announce_end(self)

    def on_train_end(self) -> None:
        """End the training as nnU-Net does, and keep the leakage warning in the plans of the results folder."""
        keep_leakage(self, self._leakage)
        super().on_train_end()

    # ---- checkpoints

    def own_state(self) -> dict[str, Any]:
        """Return the state that resuming needs in addition to nnU-Net's checkpoint."""
        stages = self.distiller.teacher_stages
        return {
            **self._history.state(self.current_epoch + 1),
            **saved_state(self.trained()),
            **super().own_state(),
            "terms": self.distiller.places,
            "teacher_stages": None if stages is None else asdict(stages),
        }

    @said_last
    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load the student, adapters, optimizer, average and log of a saved training."""
        saved = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False, mmap=True).get(BLOCK)
        optimizer = self.preparation.settings.training.optimizer
        check_resumable(saved, filename_or_checkpoint, self.distiller.places, optimizer)
        self.resumes = True
        if self.distiller.teacher_stages is None and saved["teacher_stages"] is not None:
            self.distiller.teacher_stages = EncoderStages(**saved["teacher_stages"])
        if not self.was_initialized:
            self.initialize()
        check_adapters(self.trained().adapters, saved["adapters"])
        super().load_checkpoint(filename_or_checkpoint)
        self.load_own_state(saved)
        self._add_log_entries()
        self._history.resume(saved, self.current_epoch)
        for line in about_changes(record_of(self.preparation), saved.get("record"), self.unfinished):
            self.print_to_log_file(line)

    def load_own_state(self, saved: Mapping[str, Any]) -> None:
        """Load the state of :meth:`own_state`, after the network and the optimizer were made."""
        super().load_own_state(saved)
        self.trained().adapters.load_state_dict(saved["adapters"])
        load_average(self.trained(), saved["average"], saved["average_shown"])
