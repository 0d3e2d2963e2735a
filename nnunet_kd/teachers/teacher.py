"""A trained nnU-Net as a teacher: where it lies, whether it fits the student, and the frozen network."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_kd.networks.stages import EncoderStages, encoder_stages, has_encoder_stages
from nnunet_kd.nnunet.cascade import FirstStage
from nnunet_kd.nnunet.checkpoint import TRUST_TEACHER, mirroring_axes, read_checkpoint
from nnunet_kd.nnunet.reading import channel_names, read_dataset_json, read_json, read_plans
from nnunet_kd.nnunet.settings import TeacherSettings
from nnunet_kd.nnunet.trust.architectures import check_networks, load_network, plans_errors
from nnunet_kd.teachers.leakage import (
    known_validation,
    leakage_of_split,
    second_hand_leakage,
    teacher_folds,
    validated_cases,
)


@dataclass(frozen=True)
class Experiment:
    """What a training belongs to, of a student or of a teacher."""

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher that was found: its plans have been read, its weights not yet.

    Attributes:
        deep_supervision: Whether its heads at lower resolutions were trained.
        leakage: Why it may have seen the student's validation cases, as far as its own files and existing splits say.
        fold: Of the teacher.
        kept_back: The cases it was validated on, and so not trained on; ``None``: its validation has not ended.
        precision: ``"bfloat16"``, or ``None``: as the student's.
    """

    experiment: Experiment
    checkpoint: Path
    deep_supervision: bool
    trust_checkpoint: bool
    leakage: str | None
    fold: int | str
    kept_back: frozenset[str] | None
    precision: str | None = None


def find_teachers(settings: Sequence[TeacherSettings], student: Experiment, fold: int | str) -> list[TeacherFiles]:
    """Locate the teachers of one student fold and check that all see the same images and labels.

    Returns:
        One entry a teacher and fold.

    Raises:
        FileNotFoundError: Where folder, fold or checkpoint are missing, with the command that makes them.
        ValueError: Where a teacher does not fit, or its plans cannot be read, or could run code and are not trusted.
    """
    return [_find(entry, chosen, student) for entry in settings for chosen in teacher_folds(entry, fold)]


def _find(settings: TeacherSettings, fold: int | str, student: Experiment) -> TeacherFiles:
    """One teacher, one fold."""
    configuration = settings.configuration or student.configuration
    plans_name = settings.plans or _source_plans(student.plans)
    first = FirstStage.of(student.plans, configuration, settings.trainer, plans_name)
    train = (
        f"nnUNetv2_train {student.plans['dataset_name']} {configuration} {fold} -tr {settings.trainer} -p {plans_name}"
    )
    command = " && ".join([*(first.commands if first else []), train])
    if settings.folder is not None:
        folder, mend, finish = Path(settings.folder), "Name another one: nnunet_kd.teacher.folder", ""
    else:
        name = f"{settings.trainer}__{plans_name}__{configuration}"
        folder = Path(nnUNet_results.require()) / student.plans["dataset_name"] / name
        mend, finish = f"Train it: {command}", f". Finish its training: {command} --c"
    if not folder.is_dir():
        others = [] if settings.folder is not None else _other_plans(folder.parent, settings, configuration, fold)
        if others:  # plans that were copied by hand have another name than their teacher's
            mend = (
                f'There is one with the plans {", ".join(others)}: set "teacher": {{"plans": "{others[0]}"}} in the '
                f"nnunet_kd block of {student.plans['plans_name']} to learn from it, or train this one: {command}"
            )
        raise FileNotFoundError(f"there is no teacher in {folder}. {mend}")
    fold_folder = folder / f"fold_{fold}"
    if not fold_folder.is_dir():
        have = ", ".join(sorted(entry.name for entry in folder.glob("fold_*"))) or "no fold"
        raise FileNotFoundError(f"the teacher in {folder} has {have}, but not fold_{fold}. {mend}")
    checkpoint = fold_folder / settings.checkpoint
    if not checkpoint.is_file():
        have = ", ".join(sorted(entry.name for entry in fold_folder.glob("*.pth"))) or "no checkpoint"
        raise FileNotFoundError(f"the teacher has {have} in {fold_folder}, but not {settings.checkpoint}{finish}")
    path, whose = folder / "plans.json", "the teacher's "
    teacher = Experiment(read_plans(path, whose), configuration, read_dataset_json(folder / "dataset.json", whose))
    if not settings.trust_checkpoint and configuration in teacher.plans["configurations"]:
        check_networks(teacher.plans, path, TRUST_TEACHER, configuration)
    check_teacher(teacher, student, path)
    kept_back = validated_cases(fold_folder)
    leaks = second_hand_leakage(teacher.plans, student.plans, fold) or leakage_of_split(
        kept_back, known_validation(student.plans["dataset_name"], fold), fold
    )
    deep_supervision = _had_deep_supervision(fold_folder)
    return TeacherFiles(
        teacher, checkpoint, deep_supervision, settings.trust_checkpoint, leaks, fold, kept_back, settings.precision
    )


def _other_plans(results: Path, settings: TeacherSettings, configuration: str, fold: int | str) -> list[str]:
    """Names of the plans with which the same trainer has trained the same configuration and fold."""
    before, after = f"{settings.trainer}__", f"__{configuration}"
    checkpoints = results.glob(f"{escape(before)}*{escape(after)}/fold_{fold}/{escape(settings.checkpoint)}")
    return sorted(path.parents[1].name.removeprefix(before).removesuffix(after) for path in checkpoints)


def _had_deep_supervision(fold_folder: Path) -> bool:
    """What nnU-Net wrote down when the training began; its default where the file is gone."""
    notes = fold_folder / "debug.json"
    return (
        not notes.is_file() or str(read_json(notes, "the teacher's ").get("enable_deep_supervision", True)) != "False"
    )


def check_teacher(teacher: Experiment, student: Experiment, path: Path) -> None:
    """Refuse a teacher that was trained on other inputs or for other outputs than the student.

    Args:
        teacher: The teacher's.
        student: The student's.
        path: Where the teacher's plans were read, for messages.

    Raises:
        ValueError: One sentence saying what differs.
    """
    for experiment, whose in ((teacher, "teacher"), (student, "student")):
        if experiment.configuration not in experiment.plans["configurations"]:
            raise ValueError(
                f"the {whose}'s plans {experiment.plans.get('plans_name')} have no configuration "
                f"{experiment.configuration}, only {', '.join(experiment.plans['configurations'])}"
            )
    with plans_errors(path):
        theirs = _facts(teacher)
    ours = _facts(student)
    for fact, mine in ours.items():
        if not _agree(theirs[fact], mine):
            raise ValueError(
                f"the teacher does not fit the student: its {fact} is {theirs[fact]}, the student's {mine}"
            )


def _facts(experiment: Experiment) -> dict[str, Any]:
    plans, dataset = experiment.plans, experiment.dataset_json
    configuration = PlansManager(plans).get_configuration(experiment.configuration).configuration
    channels = list(channel_names(dataset).values())
    schemes = configuration["normalization_schemes"]
    facts = {
        "number of input channels": len(channels),
        "list of input channels": [str(channel).lower() for channel in channels],
        # The order of regions is that of the network's channels.
        "label list": list(dataset["labels"].items()) if "regions_class_order" in dataset else dataset["labels"],
        "order of regions": dataset.get("regions_class_order"),
        "number of spatial axes": len(configuration["patch_size"]),
        "spacing (mm)": [float(spacing) for spacing in configuration["spacing"]],
        "intensity normalisation": list(schemes),
        "normalisation inside the mask": list(configuration["use_mask_for_norm"]),
        "axis order": list(plans["transpose_forward"]),
        "previous cascade stage": configuration.get("previous_stage"),
    }
    # CT intensities are scaled by statistics of the data set, which plans carry; MRI by those of the case.
    statistics = PlansManager(plans).foreground_intensity_properties_per_channel
    for channel, scheme in enumerate(schemes):
        if scheme == "CTNormalization":
            facts[f"intensity statistics of channel {channel}"] = [
                statistics[str(channel)][key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")
            ]
    return facts


def _agree(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(entry, float) for entry in a + b):
        return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _source_plans(plans: dict[str, Any]) -> str:
    student = plans.get("nnunet_kd", {}).get("student", {})
    return str(student.get("source_plans") or plans["plans_name"])


class Teacher(nn.Module):
    """A frozen network that gives features, logits, or both.

    Args:
        network: With nnU-Net's ``encoder`` and ``decoder`` where features are wanted.
        features: Give the features of the encoder stages.
        logits: Give logits; without them only the encoder is held and run.
        deep_supervision: Give logits of the lower resolutions too.
        precision: ``"bfloat16"``: convolutions in that type, what it gives in float32; ``None``: as autocast is.

    Raises:
        NotImplementedError: For features of a network without encoder stages.
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
        self.stages: EncoderStages | None = None
        if features or has_encoder_stages(network):
            self.stages = encoder_stages(network)
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
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, logits: bool = True) -> tuple[list[Tensor], list[Tensor]]:
        """Logits, finest first, and the features of every encoder stage; empty where they are not held.

        Of the resolutions of deep supervision the coarsest is left out: nnU-Net gives it the weight 0, it was never
        trained.

        Args:
            images: ``(B, channels, *patch)``.
            logits: Whether they are needed this time.

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
        """Logits at full resolution of given features, with gradient to these."""
        assert self.decoder is not None
        return _trained_scales(self.decoder(features))[0]


def _trained_scales(logits: Tensor | list[Tensor]) -> list[Tensor]:
    if isinstance(logits, Tensor):
        return [logits]
    return logits[: max(len(logits) - 1, 1)]


def load_teacher(files: TeacherFiles, features: bool = True, logits: bool = False) -> Teacher:
    """The frozen network on the CPU, built by the teacher's own trainer class from its own plans.

    Raises:
        ValueError: For a checkpoint that cannot be read, is not trusted, does not belong to the plans beside it, or
            holds weights that are not finite.
        NotImplementedError: For features of a network without encoder stages.
    """
    return Teacher(load_plain(files), features, logits, logits and files.deep_supervision, files.precision)


def load_plain(files: TeacherFiles) -> nn.Module:
    """The network as nnU-Net builds it. Also a check, before a stock command unpickles and builds whatever is there.

    Raises:
        ValueError: As :func:`load_teacher`.
    """
    return _load_network(files, _read(files))


def _read(files: TeacherFiles) -> dict[str, Any]:
    configuration = files.experiment.configuration
    return read_checkpoint(files.checkpoint, files.trust_checkpoint, configuration=configuration)


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
    """Logits of whole preprocessed cases by nnU-Net's own sliding window.

    Args:
        files: The teacher.
        device: Where it runs.
        mirroring: Average over mirrored copies, along the axes the teacher was trained with.

    Returns:
        A function of images ``(channels, z, y, x)`` that gives logits ``(heads, z, y, x)``.

    Raises:
        ValueError: As :func:`load_teacher`.
    """
    experiment = files.experiment
    checkpoint = _read(files)
    network = _load_network(files, checkpoint).requires_grad_(False).eval()
    plans = PlansManager(experiment.plans)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=device, allow_tqdm=False)
        predictor.manual_initialization(
            network.to(device),
            plans,
            plans.get_configuration(experiment.configuration),
            None,
            experiment.dataset_json,
            checkpoint["trainer_name"],
            mirroring_axes(checkpoint, files.checkpoint),
        )

    def predict(images: np.ndarray) -> np.ndarray:
        logits: Tensor = predictor.predict_sliding_window_return_logits(torch.from_numpy(images))
        return logits.float().cpu().numpy()

    return predict


def find_trainer(name: str) -> Any:
    """A trainer class by its name, where nnU-Net looks for it; without its talk.

    Raises:
        ValueError: Where there is none.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError, TypeError):  # the latter where the name is of something else
        raise ValueError(f"nnU-Net finds no trainer {str(name)[:100]}") from None


def build_network(trainer: type[Any], experiment: Experiment) -> nn.Module:
    """The network a trainer class builds from plans, without deep supervision."""
    plans = PlansManager(experiment.plans)
    configuration = plans.get_configuration(experiment.configuration)
    heads = plans.get_label_manager(experiment.dataset_json).num_segmentation_heads
    channels = determine_num_input_channels(plans, configuration, experiment.dataset_json)
    build = trainer.build_network_architecture
    if "plans_manager" in inspect.signature(build).parameters:
        network = build(plans, configuration, channels, heads, enable_deep_supervision=False)
    else:  # trainers written for nnU-Net before 2.6
        network = build(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            channels,
            heads,
            enable_deep_supervision=False,
        )
    assert isinstance(network, nn.Module)
    return network
