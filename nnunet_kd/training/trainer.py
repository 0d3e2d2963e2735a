"""The base of all trainers here: nnU-Net's trainer with a smaller student and distillation terms."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule

from nnunet_kd.planning import BLOCK, Plans, read_settings, student_plans
from nnunet_kd.teachers.nnunet import Experiment, Teacher, find_teacher, load_teacher
from nnunet_kd.teachers.stages import EncoderStages, encoder_stages, match_stages
from nnunet_kd.training.checkpoint import save_atomically
from nnunet_kd.training.ema import WeightAverage
from nnunet_kd.training.loading import NETWORK, TRAINING, VALIDATION, seed_everything, seeded_augmenter
from nnunet_kd.training.student import StudentWithAdapters
from nnunet_kd.training.terms import ConfiguredTerm, StageTerm

SEGMENTATION = "segmentation"


class DistillationTrainer(nnUNetTrainer):
    """nnU-Net's trainer for a student: smaller widths, further loss terms, seeded and exactly resumable.

    What a subclass declares:

    Attributes:
        reduction: Where the plans name no student, one with widths divided by this is derived from them.
        terms: Loss terms beside nnU-Net's own. With any, a teacher is needed.

    Settings come from the plan's ``nnunet_kd`` block, then from class attributes, then from nnU-Net and the losses.

    Raises:
        ValueError: For a block, a teacher or plans that do not fit, before anything is written.
        FileNotFoundError: Where the teacher is missing.
        NotImplementedError: For a network or combination that cannot be distilled.
    """

    reduction: ClassVar[float] = 4
    terms: ClassVar[tuple[StageTerm, ...]] = ()

    def __init__(
        self,
        plans: Plans,
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's signature
    ) -> None:
        self.settings = read_settings(plans)
        plans = deepcopy(plans) if self.settings.student else student_plans(plans, self.reduction)
        schedule = self.settings.training
        epochs = schedule.num_epochs or getattr(type(self), "num_epochs", None) or 1000
        self.configured_terms = [term.configured(self.settings.method, epochs) for term in self.terms]
        if not self.terms and self.settings.method:
            raise ValueError(f"{type(self).__name__} has no terms: nnunet_kd.method must be empty")
        self._student = Experiment(plans, configuration, dataset_json)
        self._student_fold = fold
        self.teacher: Teacher | None = None
        self.teacher_stages: EncoderStages | None = None
        self.matched_stages: list[tuple[int, int]] = []
        self.leakage: str | None = None
        self.average: WeightAverage | None = None
        if self.terms and not self._is_finished():
            self._load_teacher()
        super().__init__(plans, configuration, fold, dataset_json, device)
        for key in asdict(schedule).keys() - {"seed", "ema_decay"}:
            value = getattr(schedule, key)
            value = getattr(type(self), key, None) if value is None else value
            if value is not None:
                setattr(self, key, value)
        self._add_log_entries()

    # ---- the teacher

    def _is_finished(self) -> bool:
        """Whether this training has ended before: then validation alone may be wanted, which needs no teacher."""
        if not nnUNet_results.is_set():
            return False
        plans = self._student.plans
        name = f"{type(self).__name__}__{plans['plans_name']}__{self._student.configuration}"
        folder = Path(nnUNet_results.require()) / plans["dataset_name"] / name / f"fold_{self._student_fold}"
        return (folder / "checkpoint_final.pth").is_file()

    def _load_teacher(self) -> None:
        files = find_teacher(self.settings.teacher, self._student, self._student_fold)
        student = self._stages_of_student()
        self.teacher = load_teacher(files, self.settings.teacher.trust_checkpoint)
        self.teacher_stages = self.teacher.stages
        self.matched_stages = match_stages(student, self.teacher_stages)
        configuration = PlansManager(self._student.plans).get_configuration(self._student.configuration)
        coarsest = self.teacher_stages.strides[-1]
        if any(size % stride for size, stride in zip(configuration.patch_size, coarsest, strict=True)):
            raise ValueError(
                f"the student's patch {list(configuration.patch_size)} cannot be divided by the teacher's strides {coarsest}"
            )
        self.leakage = files.leakage
        if files.leakage is not None:  # nnU-Net saves these plans with the results
            self._student.plans[BLOCK].setdefault("teacher", {})["leakage"] = files.leakage

    def _stages_of_student(self) -> EncoderStages:
        """Of the network the plans ask for, built without memory."""
        plans = PlansManager(self._student.plans)
        configuration = plans.get_configuration(self._student.configuration)
        dataset_json = self._student.dataset_json
        with torch.device("meta"):
            network = self.build_network_architecture(
                plans,
                configuration,
                determine_num_input_channels(plans, configuration, dataset_json),
                plans.get_label_manager(dataset_json).num_segmentation_heads,
                False,
            )
        return encoder_stages(network)

    # ---- the network

    def initialize(self) -> None:
        """nnU-Net's, with the student and its adapters as the network."""
        if self.terms and self.teacher_stages is None:
            self._load_teacher()
        if self.settings.training.seed is not None:
            seed_everything(self.settings.training.seed, NETWORK)
        with self._building(StudentWithAdapters):
            super().initialize()
        if self.settings.training.ema_decay is not None:
            self.average = WeightAverage(self._joint().student, self.settings.training.ema_decay)

    @contextmanager
    def _building(self, joint: type[StudentWithAdapters]) -> Iterator[None]:
        """Let nnU-Net build, compile, optimise and wrap student and adapters where it would the plain network."""
        build_student = self.build_network_architecture

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
            adapters = nn.ModuleDict()
            for term in self.configured_terms:
                assert self.teacher_stages is not None
                adapters[term.name] = term.adapters(encoder_stages(student), self.teacher_stages)
            return joint(student, adapters)

        self.build_network_architecture = build  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.build_network_architecture

    def _joint(self) -> StudentWithAdapters:
        network = self.network.module if self.is_ddp else self.network
        network = network._orig_mod if isinstance(network, OptimizedModule) else network
        assert isinstance(network, StudentWithAdapters)
        return network

    # ---- training

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders; seeded, each batch by its number, unless the seed is null."""
        seed = self.settings.training.seed
        if seed is None:
            loaders: tuple[Any, Any] = super().get_dataloaders()
            return loaders
        with _no_worker_processes():
            train, val = super().get_dataloaders()
        workers = get_allowed_n_proc_DA()
        pin = self.device.type == "cuda"
        first = self.current_epoch * self.num_iterations_per_epoch
        first_val = self.current_epoch * self.num_val_iterations_per_epoch
        val_workers = max(1, workers // 2) if workers else 0
        return (
            seeded_augmenter(train.data_loader, seed, TRAINING, self.local_rank, first, workers, pin),
            seeded_augmenter(val.data_loader, seed, VALIDATION, self.local_rank, first_val, val_workers, pin),
        )

    def on_train_start(self) -> None:
        """Say what is distilled from what."""
        if self.terms and self.teacher is None and self.current_epoch < self.num_epochs:
            self._load_teacher()
        super().on_train_start()
        if self.teacher is None:
            return
        self.teacher.to(self.device)
        for term in self.configured_terms:
            self.print_to_log_file(f"distilling {term}")
        if self.leakage is not None:
            self.print_to_log_file(self.leakage)

    def on_train_epoch_start(self) -> None:
        """Train the student's own weights, with random numbers that depend on the epoch alone."""
        if self.average is not None:
            self.average.hide()
        if self.settings.training.seed is not None:
            seed_everything(self.settings.training.seed, NETWORK, self.local_rank, self.current_epoch + 1)
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of nnU-Net with the terms added; every value leaves the device in one transfer."""
        images = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [scale.to(self.device, non_blocking=True) for scale in target]
        else:
            target = target.to(self.device, non_blocking=True)

        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            logits, features = self.network(images)
            segmentation = self.loss(logits, target)
            values = self._term_values(images, features)
        total = segmentation
        for term in self.configured_terms:
            if term.name in values:
                total = total + term.weight_at(self.current_epoch) * values[term.name]
        if len(values) < len(self.configured_terms):
            # Adapters without a gradient would stop DDP, and would be treated differently by the optimizer.
            total = total + 0 * sum(parameter.sum() for parameter in self._joint().adapters.parameters())
        self._optimize(total)

        names = ["loss", SEGMENTATION, *values]
        numbers = torch.stack([total.detach(), segmentation.detach(), *(value.detach() for value in values.values())])
        return dict(zip(names, numbers.float().cpu().numpy(), strict=True))

    def _term_values(self, images: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
        """Unweighted value of every term whose weight is not 0 in this epoch; the teacher runs once, if at all."""
        active = [term for term in self.configured_terms if term.weight_at(self.current_epoch) > 0]
        if not active:
            return {}
        assert self.teacher is not None
        _, taught = self.teacher(images)
        adapters = self._joint().adapters
        return {
            term.name: term(features, taught, self.matched_stages, adapters[term.name])  # type: ignore[arg-type]
            for term in active
        }

    def _optimize(self, total: Tensor) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.scale(total).backward()
            self.grad_scaler.unscale_(self.optimizer)
        else:
            total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        if self.average is not None:
            self.average.update()

    # ---- the log

    def _add_log_entries(self) -> None:
        for name in (SEGMENTATION, *(term.name for term in self.configured_terms)):
            self.logger.local_logger.my_fantastic_logging.setdefault(name, [])

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean of every term beside nnU-Net's loss; not a number while its weight is 0."""
        super().on_train_epoch_end([{"loss": output["loss"]} for output in train_outputs])
        means = _means(train_outputs, self.is_ddp)
        parts = []
        for name in (SEGMENTATION, *(term.name for term in self.configured_terms)):
            self.logger.log(name, means.get(name, float("nan")), self.current_epoch)
            if name in means:
                parts.append(f"{name} {means[name]:.4g}")
        for term in self.configured_terms:
            parts.append(f"weight of {term.name} {term.weight_at(self.current_epoch):.3g}")
        self.print_to_log_file(", ".join(parts))

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
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)  # type: ignore[arg-type]
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint[BLOCK] = {
            "adapters": self._joint().adapters.state_dict(),
            "teacher_stages": None if self.teacher_stages is None else asdict(self.teacher_stages),
            "average": None if self.average is None else self.average.state_dict(),
            "average_shown": self.average is not None and self.average.shown,
        }
        save_atomically(checkpoint, filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Student, adapters, optimizer, average and log of a saved training."""
        saved = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False, mmap=True)[BLOCK]
        if self.teacher_stages is None and saved["teacher_stages"] is not None:
            self.teacher_stages = EncoderStages(**saved["teacher_stages"])
        super().load_checkpoint(filename_or_checkpoint)
        self._joint().adapters.load_state_dict(saved["adapters"])
        if self.average is not None and saved["average"] is not None:
            self.average.load_state_dict(saved["average"], saved["average_shown"])
        elif self.average is not None:  # asked for since: starts from the weights just loaded
            self.average = WeightAverage(self._joint().student, self.average.decay)
        self._add_log_entries()


@contextmanager
def _no_worker_processes() -> Iterator[None]:
    """Make nnU-Net build its data loaders in this process."""
    variable = "nnUNet_n_proc_DA"
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _means(outputs: list[dict[str, Any]], is_ddp: bool) -> Mapping[str, float]:
    """Mean of every value over the steps of an epoch, and over the processes."""
    means = {name: float(np.mean([output[name] for output in outputs])) for name in outputs[0]}
    if not is_ddp:
        return means
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, means)
    return {name: float(np.mean([process[name] for process in gathered])) for name in means}


