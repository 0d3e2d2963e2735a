"""nnU-Net's trainer with reproducible results, exact resuming and atomic checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_kd.nnunet.settings import BLOCK, SCHEDULE, TrainingSettings
from nnunet_kd.training.augmentation import reduce_augmentation
from nnunet_kd.training.checkpoint import save_atomically, stock_checkpoint
from nnunet_kd.training.early_stopping import EndOfTrainingError, best_epoch, stops_after
from nnunet_kd.training.faults import SKIPPED, BatchCheck, SkippedSteps
from nnunet_kd.training.interruption import LastEpoch
from nnunet_kd.training.loading import NETWORK, no_worker_processes, repeat_exactly, seed_everything, seeded_loaders
from nnunet_kd.training.numbers import as_numbers
from nnunet_kd.training.refusals import said_last
from nnunet_kd.training.results import (
    Lock,
    readable_splits,
    refuse_finished,
    remove_aside,
    resume_from_end,
    set_aside,
)
from nnunet_kd.training.schedules import PlateauSchedule


class ResumableTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnU-Net is untyped
    """Train reproducibly and resume exactly; knows nothing about distillation.

    A subclass calls :meth:`begin_life` before nnU-Net's constructor.

    Attributes:
        seed: The seed of initial weights, data loading and augmentation; ``None`` leaves them unseeded, as in nnU-Net.
        resumes: Whether the training resumes from a checkpoint.
        overwrite: Whether a new training can replace a finished one.
        early_stopping: The number of epochs without improvement after which the training ends; ``None`` trains all.
        one_pass: Whether an epoch is one pass over the cases.
        augmentation: The part of nnU-Net's augmentation that is applied; ``None`` for all of it.
    """

    seed: int | None
    overwrite: bool
    early_stopping: int | None
    one_pass: bool
    augmentation: str | None

    def begin_life(self) -> None:
        """Initialize the attributes of this class, which nnU-Net's constructor already uses."""
        self.resumes = False
        self._lock: Lock | None = None
        self._split: tuple[list[str], list[str]] | None = None
        self._skipped = SkippedSteps()
        self._last_epoch = LastEpoch(self.print_to_log_file)

    def follow(self, training: TrainingSettings) -> None:
        """Take over the settings that are attributes of trainers; what is not set stays as nnU-Net has it."""
        for key in SCHEDULE:
            if getattr(training, key) is not None:
                setattr(self, key, getattr(training, key))
        self.seed, self.overwrite, self.early_stopping = training.seed, training.overwrite, training.early_stopping
        self.augmentation = training.augmentation
        self.one_pass, self._validates_for = training.one_pass_per_epoch, training.num_val_iterations_per_epoch
        if not training.deep_supervision:
            self.enable_deep_supervision = False

    def pass_over_cases(self) -> None:
        """Make an epoch one pass over the training cases and one over the validation cases, if the settings say so."""
        if self.one_pass:
            passes = [math.ceil(len(cases) / self.configuration_manager.batch_size) for cases in self.do_split()]
            self.num_iterations_per_epoch = passes[0]
            self.num_val_iterations_per_epoch = self._validates_for or passes[1]

    @property
    def writes(self) -> bool:
        """Whether this process writes checkpoints."""
        return self.local_rank == 0 and not self.disable_checkpointing

    @property
    def unfinished(self) -> bool:
        """Whether any epochs remain to be trained."""
        return self.current_epoch < self.num_epochs and not stops_after(self._dice, self.early_stopping)

    @property
    def _dice(self) -> list[float]:
        """nnU-Net's EMA pseudo Dice of every epoch so far."""
        dice: list[float] = self.logger.local_logger.my_fantastic_logging["ema_fg_dice"]
        return dice

    # ---- data

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does, but only once: the leakage check and the validation must see the same cases."""
        if self._split is None:
            if self.fold != "all":
                readable_splits(Path(self.preprocessed_dataset_folder_base))
            self._split = super().do_split()
        return self._split

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders, with every batch seeded by its number unless the seed is ``None``."""
        if self.seed is None:
            return self.stock_dataloaders()
        with no_worker_processes():
            train, val = self.stock_dataloaders()
        return seeded_loaders(
            (train.data_loader, val.data_loader),
            (self.num_iterations_per_epoch, self.num_val_iterations_per_epoch),
            self.current_epoch,
            seed=self.seed,
            rank=self.local_rank,
            pin_memory=self.device.type == "cuda",
            check=self.batch_check(),
        )

    def stock_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders without seeding."""
        loaders: tuple[Any, Any] = super().get_dataloaders()
        return loaders

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's augmentation, or the part that the settings ask for."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.augmentation is not None:
            reduce_augmentation(transforms, self.augmentation)
        if self.seed is not None:
            repeat_exactly(transforms)
        return transforms

    def batch_check(self) -> BatchCheck:
        """Return the check that every batch of images, labels and soft labels has to pass."""
        return BatchCheck(self.num_input_channels, self.label_manager)

    # ---- training

    def _do_i_compile(self) -> bool:
        """Compile as nnU-Net does, but not a network that says of itself that it does not compile."""
        willing = all(getattr(module, "compiles", True) for module in self.network.modules())
        return willing and bool(super()._do_i_compile())

    @said_last
    def run_training(self) -> None:
        """Train as nnU-Net does, and save the last finished epoch if the training is stopped."""
        if not self.resumes and not self.overwrite:
            refuse_finished(Path(self.output_folder))
        with self._last_epoch.saved_when_stopped(Path(self.output_folder)) if self.writes else nullcontext():
            try:
                super().run_training()
            except EndOfTrainingError:
                self.on_train_end()

    def on_epoch_start(self) -> None:
        """Begin an epoch as nnU-Net does, or end the training if it no longer improves."""
        if not self.unfinished:
            best = best_epoch(self._dice)
            self.print_to_log_file(
                f"early stopping: EMA pseudo Dice has not risen since epoch {best}, {self.early_stopping} epochs ago"
            )
            raise EndOfTrainingError
        super().on_epoch_start()

    def lock_results(self) -> None:
        """Lock the results folder, and refuse to train while another process holds the lock."""
        if self.local_rank == 0:
            self._lock = Lock(Path(self.output_folder))

    def clear_way(self) -> None:
        """Move the checkpoints of earlier trainings out of the way of this one."""
        folder = Path(self.output_folder)
        if self.resumes:
            resume_from_end(folder)
            self._save_best()
        elif earlier := set_aside(folder):
            self.print_to_log_file(f"of an earlier training, until this one has ended: {', '.join(earlier)}")

    def on_train_epoch_start(self) -> None:
        """Seed the random numbers of an epoch, so that they depend on nothing but the epoch."""
        if self.seed is not None:
            seed_everything(self.seed, NETWORK, self.local_rank, self.current_epoch + 1)
        super().on_train_epoch_start()

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Move the images and the target of a batch to the device; under deep supervision the target is a list."""
        target = batch["target"]
        if isinstance(target, list):
            moved: Any = [scale.to(self.device, non_blocking=True) for scale in target]
        else:
            moved = target.to(self.device, non_blocking=True)
        return batch["data"].to(self.device, non_blocking=True), moved

    def frozen(self) -> list[nn.Parameter]:
        """Return the parameters that must not change in this epoch."""
        return []

    def optimize(self, total: Tensor, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Run nnU-Net's backward pass, clipping and optimizer step, but skip steps whose gradients are not finite.

        Gradients whose norm overflows are not finite either: clipping would turn them into zeros.

        Returns:
            The values as plain numbers, and under :data:`SKIPPED` whether the step was skipped.
        """
        scaler: torch.amp.GradScaler | None = self.grad_scaler
        scaled = total if scaler is None else scaler.scale(total)
        scaled.backward()  # type: ignore[no-untyped-call]
        for parameter in self.frozen():  # before the scaler looks for gradients that are not finite
            parameter.grad = None  # so that neither weight decay nor old momentum changes it
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        finite = torch.isfinite(torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12))
        if finite:  # the scaler alone would take a step whose gradients are finite but have an infinite norm
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()
        numbers = as_numbers({**values, SKIPPED: ~finite})
        self._skipped.watch(numbers)
        return numbers

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the validation as nnU-Net does, and pass its loss to a schedule that waits for it."""
        super().on_validation_epoch_end(val_outputs)
        if isinstance(self.lr_scheduler, PlateauSchedule):
            self.lr_scheduler.observe(float(self.logger.get_value("val_losses", -1)))

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does, and keep its checkpoint in memory in case the training is stopped."""
        super().on_epoch_end()
        if self.writes:
            with self._in_ended_epoch():
                self._last_epoch.hold(self.checkpoint_content)

    def on_train_end(self) -> None:
        """End the training as nnU-Net does, and release the lock on the results folder."""
        super().on_train_end()
        if self._lock is not None:
            if not self.disable_checkpointing:
                remove_aside(Path(self.output_folder))
            self._lock.free()

    # ---- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write atomically nnU-Net's checkpoint and, under an own key, the additional state that resuming needs."""
        if not self.writes:
            super().save_checkpoint(filename)
            return
        with self._last_epoch.saving(Path(filename)):
            save_atomically(self.checkpoint_content(), filename)

    def checkpoint_content(self) -> dict[str, Any]:
        """Return nnU-Net's checkpoint, on the CPU, with the state of this package."""
        return {**stock_checkpoint(super().save_checkpoint), BLOCK: self.own_state()}

    @contextmanager
    def _in_ended_epoch(self) -> Iterator[None]:
        """Set the epoch counter back to the ended epoch, as nnU-Net has it when it writes a checkpoint."""
        self.current_epoch -= 1
        try:
            yield
        finally:
            self.current_epoch += 1

    def _save_best(self) -> None:
        """Write the best checkpoint if a resumed training's last epoch is its best one.

        A training stopped between nnU-Net's usual save and its save of the best epoch lacks that checkpoint.
        """
        dice = self._dice
        best: float | None = self._best_ema  # type: ignore[has-type]
        if dice and (best is None or dice[-1] > best):
            self._best_ema = dice[-1]
            with self._in_ended_epoch():
                self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))

    def own_state(self) -> dict[str, Any]:
        """Return the state that resuming needs in addition to nnU-Net's checkpoint."""
        schedule = self.lr_scheduler
        return {"plateau": schedule.state_dict()} if isinstance(schedule, PlateauSchedule) else {}

    def load_own_state(self, saved: Mapping[str, Any]) -> None:
        """Load the state of :meth:`own_state`; a schedule that the training began without starts anew."""
        if isinstance(self.lr_scheduler, PlateauSchedule) and "plateau" in saved:
            self.lr_scheduler.load_state_dict(saved["plateau"])
