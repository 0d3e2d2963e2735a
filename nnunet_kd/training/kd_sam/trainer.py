"""KD-SAM's training: the encoder learns SAM's embeddings, then the decoder learns on the frozen encoder.

Patil et al., "Efficient Knowledge Distillation of SAM for Medical Image Segmentation", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from nnunet_kd.losses.perceptual import PerceptualLoss
from nnunet_kd.networks.kd_sam import KDSAM, load_resnet, load_sam_decoder
from nnunet_kd.networks.pretrained import VGG16_ENDS, resnet50_weights, vgg16_layers
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.storage.integrity import file_digest
from nnunet_kd.teachers.sam import load_sam
from nnunet_kd.teachers.sam_embeddings import Colours, EmbeddingStore, SamEmbedder
from nnunet_kd.teachers.soft_labels import store_folder
from nnunet_kd.training.kd_sam.patches import EmbeddedPatches
from nnunet_kd.training.kd_sam.phases import DECODER, ENCODER, EncoderProgress, PhasedStudent
from nnunet_kd.training.kd_sam.settings import KDSAMSettings
from nnunet_kd.training.loading import TRAINING, VALIDATION, seeded_augmenter
from nnunet_kd.training.numbers import SEGMENTATION, as_numbers, means
from nnunet_kd.training.schedules import PlateauSchedule
from nnunet_kd.training.sources import soft_labels_command
from nnunet_kd.training.trainer import DistillationTrainer

MSE, PERCEPTUAL, VALIDATION_MSE = "embedding_mse", "embedding_perceptual", "validation_embedding_mse"


class KDSAMTrainer(DistillationTrainer):
    """nnU-Net's trainer for :class:`nnunet_kd.networks.kd_sam.KDSAM`, in two phases.

    Phase 1 fits the encoder to SAM's embeddings (MSE and perceptual loss, eq. 1-3). Phase 2 freezes the encoder and
    fits the decoder to the labels (Dice, eq. 4). One Adam serves both phases: parameters without a gradient neither
    change nor decay.

    Raises:
        ValueError: If settings, weights or the network do not fit.
        FileNotFoundError: If SAM's weights, VGG's weights or the stored embeddings are missing.
        NotImplementedError: If the settings ask for averaged weights.
    """

    network_of_plans = "kd_sam"
    method = KDSAMSettings
    joint = PhasedStudent
    loss_names: ClassVar[tuple[str, ...]] = (MSE, PERCEPTUAL, VALIDATION_MSE, SEGMENTATION)

    def set_up(self) -> None:
        """Read the settings; for a new training also load SAM and the embeddings, so that faults show at once."""
        self.enable_deep_supervision = False
        self.settings: KDSAMSettings = self.preparation.method
        self.weight_decay = self.settings.weight_decay
        if self.preparation.settings.training.ema_decay is not None:
            raise NotImplementedError("ema_decay: KD-SAM keeps the best encoder of phase 1 and no average")
        if self.early_stopping is not None:
            raise NotImplementedError(
                "early_stopping: KD-SAM ends phase 1 by its own setting and trains all of phase 2"
            )
        self.settings.longest_encoder(self.num_epochs)  # raises if no epoch is left for the decoder
        self.progress = EncoderProgress()
        self.store: EmbeddingStore | None = None
        self.embedder: SamEmbedder | None = None
        self.perceptual: PerceptualLoss | None = None
        self._sam: Any = None
        if not self.has_begun():
            self.store = self._find_embeddings(file_digest(self._checkpoint()))
            self.sam()  # a fault in SAM or VGG shows before the training begins
            self._load_perceptual()

    @property
    def longest_encoder(self) -> int:
        """The largest number of epochs in phase 1."""
        return self.settings.longest_encoder(self.num_epochs)

    def _find_embeddings(self, checkpoint_digest: str | None = None) -> EmbeddingStore | None:
        name = self.settings.embeddings
        if name is None:
            return None
        folder = Path(nnUNet_preprocessed.require()) / self.preparation.student.plans["dataset_name"]
        identifier = self.configuration_manager.data_identifier
        store = EmbeddingStore(store_folder(folder, identifier, name, EmbeddingStore))
        student = self.preparation.student
        command, normalisation = soft_labels_command(student), self.settings.normalisation
        if not (store.folder / "manifest.json").is_file():
            channels = self.settings.channels
            chosen = "" if channels is None else f" --channels {' '.join(map(str, channels))}"
            chosen += "" if normalisation == "sam" else f" --normalisation {normalisation}"
            raise FileNotFoundError(
                f"the embeddings {name!r} are missing in {folder}. Make them: {command} --embeddings --sam "
                f"{self.settings.model_type} --checkpoint {self.settings.checkpoint}{chosen} --name {name}"
            )
        cases = PreprocessedCases(folder, student)
        store.check_data(cases.data)
        colours = Colours.of(self.configuration_manager.normalization_schemes, self.settings.channels)
        wanted = {
            "patch_size": list(self.configuration_manager.patch_size),
            "channels": list(colours.channels),
            "checkpoint_sha256": checkpoint_digest,
            "normalisation": normalisation,
        }
        for key, value in wanted.items():
            made = store.manifest.get("source", {}).get(key, "sam" if key == "normalisation" else None)
            if value is not None and made != value:
                raise ValueError(f"the embeddings in {store.folder} were made with {key} = {made}, not {value}")
        try:
            store.check_cases(cases, cases.identifiers)
        except ValueError as error:
            raise ValueError(f"{error}. Make it: {command} {store.arguments} --continue") from None
        return store

    def _checkpoint(self) -> Path:
        path = Path(str(self.settings.checkpoint))
        if not path.is_file():
            raise FileNotFoundError(f"nnunet_kd.method.checkpoint: SAM's weights are missing at {path}")
        return path

    def sam(self) -> Any:
        """Return SAM, which is loaded when it is first needed."""
        if self._sam is None:
            self._sam = load_sam(self.settings.model_type, self._checkpoint())
        return self._sam

    def _load_perceptual(self) -> None:
        if self.perceptual is None and self.settings.perceptual_weight > 0:
            self.perceptual = PerceptualLoss(vgg16_layers(self.settings.perceptual_weights), VGG16_ENDS)

    # ---- the network

    def start_weights(self, student: KDSAM) -> None:
        """Load SAM's weights into the decoder and, if the settings name any, pretrained weights into the ResNet."""
        frame: int = self.sam().image_encoder.img_size
        if frame != student.encoder.image_size:
            raise ValueError(
                f"{self.settings.model_type} takes images of {frame} pixels, but the plans give KDSAM an image_size of "
                f"{student.encoder.image_size}: set image_size in its arch_kwargs to {frame}"
            )
        load_sam_decoder(student, self.sam().state_dict())
        if self.settings.encoder_weights is not None:
            load_resnet(student, resnet50_weights(self.settings.encoder_weights))

    @property
    def kd_sam(self) -> KDSAM:
        """The student as a :class:`KDSAM`."""
        student: Any = self.trained().student
        network: KDSAM = student
        return network

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PlateauSchedule]:
        """Make Adam and the plateau schedule, which serve both phases."""
        optimizer = torch.optim.Adam(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PlateauSchedule(optimizer, self.settings.plateau_patience)

    def _build_loss(self) -> nn.Module:
        """Build nnU-Net's loss, reduced to the Dice."""
        loss: nn.Module = super()._build_loss()
        inner: Any = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        inner.weight_ce = 0
        return loss

    def frozen(self) -> list[nn.Parameter]:
        """Return the parameters of the half that does not learn in this phase."""
        student = self.kd_sam
        return list((student.encoder if self._learns == DECODER else student.decoder).parameters())

    # ---- phases

    @property
    def _learns(self) -> str:
        return ENCODER if self.progress.end is None else DECODER

    def on_train_start(self) -> None:
        """Prepare the embeddings if the encoder still learns, and log the phase."""
        if not self.was_initialized:
            self.initialize()
        self.trained().learns = self._learns  # type: ignore[assignment]
        if self._learns == ENCODER and self.current_epoch < self.num_epochs:
            self._load_perceptual()
            if self.perceptual is not None:
                self.perceptual.to(self.device)
            if self.store is None:
                self.store = self._find_embeddings(None if self.resumes else file_digest(self._checkpoint()))
            if self.store is None:
                colours = Colours.of(self.configuration_manager.normalization_schemes, self.settings.channels)
                self.embedder = SamEmbedder(self.sam(), colours, self.device, self.settings.normalisation)
        self._sam = None
        super().on_train_start()
        if self.current_epoch < self.num_epochs:
            source = "computed on the fly" if self.store is None else f"stored as '{self.store.name}'"
            phase = f"phase 1, at most {self.longest_encoder} epochs, embeddings of {self.settings.model_type} {source}"
            self.print_to_log_file(f"KD-SAM: {phase if self._learns == ENCODER else 'phase 2, encoder frozen'}")

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders, or in phase 1 loaders of patches with stored embeddings if there are any."""
        if self.store is None or self._learns == DECODER:
            loaders: tuple[Any, Any] = super().get_dataloaders()
            return loaders
        self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the mirroring of predictions
        labels = self.label_manager
        transforms = self.get_validation_transforms(
            None,
            foreground_labels=labels.foreground_labels,
            regions=labels.foreground_regions if labels.has_regions else None,
            ignore_label=labels.ignore_label,
        )
        seed = int(np.random.default_rng().integers(2**32)) if self.seed is None else self.seed
        workers, pin = get_allowed_n_proc_DA(), self.device.type == "cuda"
        augmenters = []
        for dataset, stream, iterations in zip(
            self.get_tr_and_val_datasets(),
            (TRAINING, VALIDATION),
            (self.num_iterations_per_epoch, self.num_val_iterations_per_epoch),
            strict=True,
        ):
            loader = EmbeddedPatches(
                dataset, self.store, self.configuration_manager.patch_size, self.batch_size, transforms
            )
            first = self.current_epoch * iterations
            rank, check = self.local_rank, self.batch_check()
            augmenters.append(seeded_augmenter(loader, seed, stream, rank, first, workers, pin, check))
        return augmenters[0], augmenters[1]

    def on_train_epoch_start(self) -> None:
        """Replace the loaders when phase 2 begins."""
        if self.progress.end == self.current_epoch and self.store is not None:
            finished: tuple[Any, Any] = (self.dataloader_train, self.dataloader_val)  # type: ignore[has-type]
            for loader in finished:
                if isinstance(loader, MultiThreadedAugmenter):
                    loader._finish()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one training step of the current phase."""
        images, target = self.on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        # SAM runs first, for it needs the most memory and no activations are kept for the gradient yet.
        wanted = self._wanted(images, batch) if self._learns == ENCODER else None
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            learnt = self.network(images)
            if wanted is not None:
                values = self._embedding_loss(learnt, wanted)
            else:
                segmentation = self.loss(learnt, target)
                values = {"loss": segmentation, SEGMENTATION: segmentation}
        total = values["loss"]
        if self.is_ddp:  # DDP waits for the gradients of all parameters
            total = total + 0 * sum(p.sum() for p in self.frozen() if p.requires_grad)
        return self.optimize(total, values)

    def _wanted(self, images: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return SAM's embeddings, stored or computed."""
        if self.embedder is not None:
            return self.embedder(images)
        stored: Tensor = batch["embedding"].to(self.device, non_blocking=True)
        return stored.float()

    def _embedding_loss(self, embedding: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Return the total, the MSE and the perceptual loss of eq. 1."""
        mse = F.mse_loss(embedding.float(), wanted)
        if self.perceptual is None:
            return {"loss": mse, MSE: mse}
        perceptual = self.perceptual(embedding, wanted)
        return {"loss": mse + self.settings.perceptual_weight * perceptual, MSE: mse, PERCEPTUAL: perceptual}

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Validate as nnU-Net does, with the loss of the embedding in phase 1."""
        outcome: dict[str, Any] = super().validation_step(batch)
        if self._learns == ENCODER:
            images, _ = self.on_device(batch)
            with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
                values = self._embedding_loss(self.kd_sam.encoder(images), self._wanted(images, batch))
            numbers = as_numbers(values)
            outcome["loss"] = numbers["loss"]
            outcome[MSE] = numbers[MSE]
        return outcome

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Pass the validation loss to the learning rate schedule and to the early stopping of phase 1."""
        super().on_validation_epoch_end(val_outputs)
        if self._learns == ENCODER:
            error = means([{MSE: outcome[MSE]} for outcome in val_outputs], self.is_ddp)[MSE]
            # The training part of the epoch has logged NaN for it, as for all terms without a value.
            self.logger.local_logger.my_fantastic_logging[VALIDATION_MSE][self.current_epoch] = error
            self.print_to_log_file(f"{VALIDATION_MSE} {error:.4g}")
        if self._learns == DECODER:
            return
        loss = float(self.logger.get_value("val_losses", -1))
        progress = self.progress
        if loss < progress.best_loss:
            weights = {name: value.cpu().clone() for name, value in self.kd_sam.encoder.state_dict().items()}
            self.progress = EncoderProgress(None, loss, self.current_epoch, weights)
        waited = self.current_epoch - self.progress.best_epoch
        if waited >= self.settings.patience or self.current_epoch + 1 >= self.longest_encoder:
            self._end_encoder()

    def _end_encoder(self) -> None:
        """Restore the best encoder, and begin phase 2 with the next epoch."""
        best = self.progress
        if best.best_weights is None:
            raise RuntimeError("KD-SAM: the validation loss of the embedding was never finite; nothing was learnt")
        self.kd_sam.encoder.load_state_dict(best.best_weights)
        self.progress = EncoderProgress(self.current_epoch + 1, best.best_loss, best.best_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr
        self.lr_scheduler = PlateauSchedule(self.optimizer, self.settings.plateau_patience)
        self.trained().learns = DECODER  # type: ignore[assignment]
        self.embedder = self.perceptual = None
        self.print_to_log_file(
            f"KD-SAM: the encoder is that of epoch {best.best_epoch} (validation loss {best.best_loss:.4g}); phase 2, "
            "encoder frozen"
        )

    # ---- log and checkpoints

    def logged_terms(self) -> list[str]:
        """Return the names of the losses of both phases."""
        return list(self.loss_names)

    def own_state(self) -> dict[str, Any]:
        """Return the base state with the progress of the phases."""
        return {**super().own_state(), "encoder_progress": vars(self.progress)}

    def load_own_state(self, saved: Mapping[str, Any]) -> None:
        """Load the base state and the progress of the phases."""
        super().load_own_state(saved)
        best = saved["encoder_progress"]["best_weights"]
        if best is not None:  # copied, because the mapped checkpoint file will be replaced
            best = {name: weights.clone() for name, weights in best.items()}
        self.progress = EncoderProgress(**{**saved["encoder_progress"], "best_weights": best})
        for group in self.optimizer.param_groups:  # the schedule holds the learning rate, the settings the weight decay
            group["weight_decay"] = self.weight_decay
        self.trained().learns = self._learns  # type: ignore[assignment]
