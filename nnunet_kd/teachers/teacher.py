"""The teacher of a student: the frozen network of a trained nnU-Net."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_kd.networks.pyramids import pyramid_of
from nnunet_kd.networks.stages import EncoderStages, encoder_stages, has_encoder_stages
from nnunet_kd.nnunet.checkpoint import mirroring_axes, read_checkpoint
from nnunet_kd.nnunet.experiment import build_network, find_trainer
from nnunet_kd.nnunet.trust.architectures import load_network
from nnunet_kd.teachers.find import TeacherFiles

# Exactly these, because what else a subclass does with its weights is not known. Autocast runs them in its own type.
IN_LOW_PRECISION = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)


class Teacher(nn.Module):
    """A frozen network that returns features, logits, or both.

    Args:
        network: The network. To return features it needs nnU-Net's ``encoder`` and ``decoder``, or an adapter
            (:mod:`nnunet_kd.networks.pyramids`).
        features: Whether to return the features of the encoder stages.
        logits: Whether to return logits; without them, features need only the encoder.
        deep_supervision: Whether to return the logits of the lower scales too.
        precision: ``"bfloat16"`` to compute in this type and return float32; ``None`` for the precision of the current
            autocast.

    Raises:
        NotImplementedError: If features are wanted and the network shows no encoder stages.
    """

    def __init__(
        self,
        network: nn.Module,
        features: bool = True,
        logits: bool = False,
        deep_supervision: bool = False,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        self.gives_features = features
        self.precision = precision
        self.parameter_count = sum(parameter.numel() for parameter in network.parameters())
        network = pyramid_of(network) if features else network
        self.stages: EncoderStages | None = encoder_stages(network) if has_encoder_stages(network) else None
        decoder: Any = getattr(network, "decoder", None)
        if hasattr(decoder, "deep_supervision"):
            decoder.deep_supervision = deep_supervision
        if features:
            self.encoder: nn.Module = network.encoder  # type: ignore[assignment]
            self.decoder: nn.Module | None = decoder if logits else None
        else:
            self.network = network
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Keep the network in evaluation mode, whatever the argument."""
        return super().train(False)

    def settle(self, device: torch.device, compiles: bool = False) -> None:
        """Move to the device of the training, cast the weights that autocast would cast in every step, and compile.

        The outputs stay the same under the autocast of a training, which is float16 on a GPU. Without it the teacher
        cannot run on a GPU any more.

        Args:
            device: The device.
            compiles: Whether to compile the forward pass; a network that says that it does not compile stays as it is.
        """
        self.to(device)
        dtype = torch.get_autocast_dtype("cuda") if device.type == "cuda" else torch.float32
        cast: nn.Module = self
        if self.precision is not None:
            dtype = getattr(torch, self.precision)
            cast = self.encoder if self.gives_features else self  # decode() has the precision of the step
        for module in cast.modules():
            if type(module) in IN_LOW_PRECISION:
                module.to(dtype)
        if compiles and all(getattr(module, "compiles", True) for module in self.modules()):
            self.compile()

    @torch.no_grad()
    def forward(self, images: Tensor, logits: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the logits, finest scale first, and the features of every encoder stage.

        A list is empty if the teacher does not return its content. The coarsest scale of deep supervision is left out,
        because nnU-Net gives it a weight of 0 and therefore never trained it.

        Args:
            images: The images ``(B, channels, *patch)``.
            logits: Whether the logits are needed in this call.

        Shape:
            Lists of ``(B, heads, *grid)`` and ``(B, width, *grid)``.
        """
        if self.precision is None:
            return self._forward(images, logits)
        with torch.autocast(images.device.type, getattr(torch, self.precision)):
            scales, features = self._forward(images, logits)
        return [scale.float() for scale in scales], [stage.float() for stage in features]

    def _forward(self, images: Tensor, logits: bool) -> tuple[list[Tensor], list[Tensor]]:
        if not self.gives_features:
            return _trained_scales(self.network(images)), []
        features = self.encoder(images)
        if not logits or self.decoder is None:
            return [], features
        return _trained_scales(self.decoder(features)), features

    def decode(self, features: list[Tensor]) -> Tensor:
        """Compute the logits at full resolution from features, with a gradient to the features."""
        assert self.decoder is not None
        return _trained_scales(self.decoder(features))[0]


def _trained_scales(logits: Tensor | list[Tensor]) -> list[Tensor]:
    if isinstance(logits, Tensor):
        return [logits]
    return logits[: max(len(logits) - 1, 1)]


def load_teacher(files: TeacherFiles, features: bool = True, logits: bool = False) -> Teacher:
    """Load a teacher onto the CPU, with the network that its trainer class builds from its plans.

    Raises:
        ValueError: If the checkpoint cannot be read, is not trusted, does not belong to the plans beside it, or
            contains weights that are not finite.
        NotImplementedError: If features are wanted and the network has no encoder stages.
    """
    return Teacher(load_plain(files), features, logits, logits and files.deep_supervision, files.precision)


def load_plain(files: TeacherFiles) -> nn.Module:
    """Load the network as nnU-Net builds it, which also checks the files before a stock command uses them.

    Raises:
        ValueError: See :func:`load_teacher`.
    """
    return _load_network(files, _read(files))


def _read(files: TeacherFiles) -> dict[str, Any]:
    configuration = files.experiment.configuration
    return read_checkpoint(files.checkpoint, files.trust_checkpoint, files.remedy, configuration)


def _load_network(files: TeacherFiles, checkpoint: dict[str, Any]) -> nn.Module:
    network = load_network(
        lambda: build_network(find_trainer(checkpoint["trainer_name"]), files.experiment),
        checkpoint["network_weights"],
        files.checkpoint,
        files.trust_checkpoint,
    )
    for name, weight in network.state_dict().items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"the teacher's weights are not finite: {name} in {files.checkpoint}")
    return network


def case_predictor(
    files: TeacherFiles, device: torch.device, mirroring: bool = True
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that predicts whole preprocessed cases with nnU-Net's sliding window.

    Args:
        files: The files of the teacher.
        device: The device on which the teacher runs.
        mirroring: Whether to average the predictions of copies mirrored along the axes of the teacher's training.

    Returns:
        A function that maps images ``(channels, z, y, x)`` to logits ``(heads, z, y, x)``.

    Raises:
        ValueError: See :func:`load_teacher`.
    """
    predict = fold_predictor([files], device, mirroring)
    return lambda images: predict(images).float().numpy()


def fold_predictor(
    folds: Sequence[TeacherFiles], device: torch.device, mirroring: bool = True
) -> Callable[[np.ndarray], Tensor]:
    """Return a function that predicts whole preprocessed cases with the mean logits of several folds, as nnU-Net does.

    The files are read now and not needed later.

    Args:
        folds: The files of every fold of one model.
        device: The device on which the folds run, one after the other.
        mirroring: As for :func:`case_predictor`.

    Returns:
        A function that maps images ``(channels, z, y, x)`` to logits ``(heads, z, y, x)`` on the CPU, in nnU-Net's half
        precision.

    Raises:
        ValueError: See :func:`load_teacher`; also if the folds were trained by different trainers.
    """
    experiment = folds[0].experiment
    checkpoints = [_read(one) for one in folds]
    networks = [_load_network(one, content) for one, content in zip(folds, checkpoints, strict=True)]
    trainer = checkpoints[0]["trainer_name"]
    axes = mirroring_axes(checkpoints[0], folds[0].checkpoint)
    for one, content in zip(folds, checkpoints, strict=True):
        if content["trainer_name"] != trainer or mirroring_axes(content, one.checkpoint) != axes:
            raise ValueError(
                f"{one.checkpoint} was trained with another trainer or other mirroring than fold {folds[0].fold}"
            )
    plans = PlansManager(experiment.plans)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=device, allow_tqdm=False)
        predictor.manual_initialization(
            networks[0].requires_grad_(False).eval().to(device),
            plans,
            plans.get_configuration(experiment.configuration),
            [content["network_weights"] for content in checkpoints],
            experiment.dataset_json,
            trainer,
            axes,
        )

    def predict(images: np.ndarray) -> Tensor:
        logits: Tensor = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(images))
        return logits

    return predict
