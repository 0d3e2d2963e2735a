"""A student's data set and models that were trained for other images: another spacing, normalisation, labels and so on.

The models are nnU-Net's U-Nets with random features and a head that is fitted to the labels in closed form, so their
segmentations are smooth and have the right structures after a second.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

from nnunet_kd.cli import main
from nnunet_kd.nnunet.experiment import Experiment, build_network
from nnunet_kd.teachers.soft_labels import SoftLabelStore

CASES = ("a", "b")
SHAPE, SPACING = (52, 84, 80), (1.0, 0.6, 0.65)
MODALITIES = ("T1", "T2", "FLAIR")
# how bright oedema, core and cyst are in each modality
_CONTRAST = np.array([[-2, 2, -4], [3, 1, 6], [4, 6, -2]])
LABELS = {"background": 0, "oedema": 1, "core": 2, "cyst": 3}
REGIONS = {"background": 0, "tumour": [1, 2], "core": 2, "cyst": 3}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


@cache
def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a head in three modalities ``(3, z, y, x)`` and its labels ``(z, y, x)``, both read-only."""
    generator = np.random.default_rng(seed)
    centre = (np.array(SHAPE) - 1) / 2
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")) - centre.reshape(3, 1, 1, 1)
    place = place * np.array(SPACING).reshape(3, 1, 1, 1) / 0.87

    def ball(middle, radius):
        return radius - np.sqrt(((place - np.reshape(middle, (3, 1, 1, 1))) ** 2).sum(0))

    shift = generator.uniform(-2, 2, 3)
    head = np.sqrt(((place / np.reshape([25, 24, 26], (3, 1, 1, 1))) ** 2).sum(0))
    head = np.clip(4 * (1 - head), 0, 1)
    middles = np.array([[2, -6, 5], [1, -5, 6], [-5, 12, -12]]) + shift
    whole, core, cyst = (ball(middle, radius) for middle, radius in zip(middles, (11, 7, 7), strict=True))
    labels = np.zeros(SHAPE, np.uint8)
    for value, inside in ((1, whole), (2, core), (3, cyst)):
        labels[inside > 0] = value
    parts = [1 / (1 + np.exp(-depth / 2)) for depth in (whole, core, cyst)]
    parts[0] = parts[0] - parts[1]
    images = 10 + np.tensordot(_CONTRAST, np.stack(parts), 1)
    noise = gaussian_filter(generator.standard_normal(images.shape), (0, 4, 5, 5))
    images = ((images + noise) * head).astype(np.float32)
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


@cache
def _compressed(seed: int, modality: int | None) -> bytes:
    """Return the file of a modality of a scan, or of its labels."""
    images, labels = scan(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.nii.gz")
        write_image(labels if modality is None else images[modality], path)
        return path.read_bytes()


def write_image(array: np.ndarray, path: Path) -> None:
    """Write a volume with the data set's spacing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path))


@dataclass
class Plan:
    """What a student or a model was planned for."""

    name: str = "Dataset601_Student"
    channels: tuple[str, ...] = MODALITIES
    labels: dict[str, Any] = field(default_factory=lambda: dict(LABELS))
    order: tuple[int, ...] | None = None
    spacing: tuple[float, ...] = (1.6, 1.0, 1.0)
    transpose: tuple[int, int, int] = (0, 1, 2)
    normalization: str = "ZScoreNormalization"
    configuration: str = "3d_fullres"
    reader: str = "SimpleITKIO"
    anisotropic: bool | None = None

    @property
    def dataset_json(self) -> dict[str, Any]:
        order = {} if self.order is None else {"regions_class_order": list(self.order)}
        return {
            "channel_names": {str(number): name for number, name in enumerate(self.channels)},
            "labels": self.labels,
            "numTraining": len(CASES),
            "file_ending": ".nii.gz",
            **order,
        }

    @property
    def plans(self) -> dict[str, Any]:
        dim = len(self.spacing)
        statistics = {"mean": 10.0, "std": 3.0, "percentile_00_5": 0.0, "percentile_99_5": 18.0}
        architecture = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [32, 4],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * 2,
                "strides": [[1] * dim, [2] * dim],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": None,  # the logits of a voxel do not depend on the window that it is in
                "norm_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
        }
        resampling = {**RESAMPLING, "force_separate_z": self.anisotropic}
        return {
            "dataset_name": self.name,
            "plans_name": "nnUNetPlans",
            "image_reader_writer": self.reader,
            "transpose_forward": list(self.transpose),
            "transpose_backward": np.argsort(self.transpose).tolist(),
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(i): statistics for i in range(len(self.channels))},
            "configurations": {
                self.configuration: {
                    "data_identifier": f"nnUNetPlans_{self.configuration}",
                    "preprocessor_name": "DefaultPreprocessor",
                    "batch_size": 2,
                    "patch_size": [20, 40, 40][-dim:],
                    "spacing": list(self.spacing),
                    "normalization_schemes": [self.normalization] * len(self.channels),
                    "use_mask_for_norm": [False] * len(self.channels),
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": {**resampling, "order": 3},
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
                    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                    "resampling_fn_probabilities_kwargs": resampling,
                    "architecture": architecture,
                    "batch_dice": False,
                }
            },
        }

    @property
    def experiment(self) -> Experiment:
        return Experiment(self.plans, self.configuration, self.dataset_json)

    @property
    def manager(self) -> PlansManager:
        return PlansManager(self.plans)

    @property
    def folder(self) -> str:
        return f"{self.name}/nnUNetTrainer__nnUNetPlans__{self.configuration}"

    def preprocess(self, files: list[Path], labels: Path | None = None) -> tuple[np.ndarray, np.ndarray, dict]:
        """Preprocess a case as nnU-Net does."""
        settings = self.manager.get_configuration(self.configuration)
        names = [str(path) for path in files]
        return DefaultPreprocessor(verbose=False).run_case(
            names, None if labels is None else str(labels), self.manager, settings, self.dataset_json
        )

    def files(self, images: Path, case: str) -> list[Path]:
        return [images / f"{case}_{number:04d}.nii.gz" for number in range(len(self.channels))]


@dataclass
class Bridge:
    """nnU-Net's three folders with a student's preprocessed data set, for models to be put beside it."""

    root: Path
    student: Plan

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.student.name

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.student.name

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results"

    def store(self, name: str = "model") -> SoftLabelStore:
        return SoftLabelStore(self.preprocessed / f"nnUNetPlans_{self.student.configuration}_soft_{name}")

    def make(self, *words: str) -> int:
        """Run ``nnunet_kd soft-labels``."""
        return main(["soft-labels", "-d", "601", "-c", self.student.configuration, "-device", "cpu", *words])

    def add_model(self, plan: Plan, folds: tuple = (0,), images: Path | None = None, seed: int = 0) -> Path:
        """Make a trained model in ``nnUNet_results``, fitted to a case whose images show its channels."""
        folder = self.results / plan.folder
        source = images or channels_of(self.root / f"images_of_{plan.name}", plan.channels, cases=CASES[:1])
        for number, fold in enumerate(folds):
            (folder / f"fold_{fold}").mkdir(parents=True)
            content = {
                "network_weights": fitted(plan, source, seed + number).state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": plan.configuration, "fold": fold},
                "inference_allowed_mirroring_axes": (0, 1),
            }
            torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
        (folder / "plans.json").write_text(json.dumps(plan.plans))
        (folder / "dataset.json").write_text(json.dumps(plan.dataset_json))
        return folder

    def whole(self, plan: Plan, files: list[Path], mirroring: bool = False) -> np.ndarray:
        """Return the model's probabilities of a whole raw image from nnU-Net's predictor, all in memory."""
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
        folder = self.results / plan.folder
        folds = tuple(path.name[5:] for path in sorted(folder.glob("fold_*")))
        predictor.initialize_from_trained_model_folder(str(folder), folds)
        array, properties = plan.manager.image_reader_writer_class().read_images([str(path) for path in files])
        return predictor.predict_single_npy_array(array, properties, None, None, True)[1]

    def on_student_grid(self, whole: np.ndarray, case: str) -> np.ndarray:
        """Transpose, crop and resample probabilities ``(heads, z, y, x)`` as the student's preprocessing does."""
        shape, noted = self.placement(case)
        forward = self.student.transpose
        whole = whole.transpose(0, *(axis + 1 for axis in forward))
        crop = tuple(slice(*limits) for limits in noted["bbox_used_for_cropping"])
        spacing = [noted["spacing"][axis] for axis in forward]
        settings = self.student.manager.get_configuration(self.student.configuration)
        target = [*spacing[: 3 - len(settings.spacing)], *settings.spacing]
        return settings.resampling_fn_probabilities(whole[(slice(None), *crop)], shape, spacing, target)

    def placement(self, case: str) -> tuple[tuple[int, ...], dict]:
        """Return shape and properties of a preprocessed case."""
        from nnunet_kd.nnunet.cases import PreprocessedCases

        return PreprocessedCases(self.preprocessed, self.student.experiment).placement(case)


def channels_of(folder: Path, names: tuple[str, ...], change: Any = None, cases: tuple[str, ...] = CASES) -> Path:
    """Write the images of cases with these modalities as channels, in a folder of their own."""
    for number, case in enumerate(cases):
        images = None if change is None else change(scan(number)[0])
        for channel, name in enumerate(names):
            path, modality = folder / f"{case}_{channel:04d}.nii.gz", MODALITIES.index(name)
            if images is None:
                _write(_compressed(number, modality), path)
            else:
                write_image(images[modality], path)
    return folder


def _write(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def copied(bridge: Bridge, root: Path, monkeypatch: Any) -> Bridge:
    """Return a copy that a test can change."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        shutil.copytree(bridge.root / name, root / name)
        monkeypatch.setenv(name, str(root / name))
    return Bridge(root, bridge.student)


def make_bridge(root: Path, student: Plan, monkeypatch: Any, cases: tuple[str, ...] = CASES) -> Bridge:
    """Make the student's raw and preprocessed data set."""
    bridge = Bridge(root, student)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        monkeypatch.setenv(name, str(root / name))
    channels_of(bridge.raw / "imagesTr", student.channels, cases=cases)
    for number, case in enumerate(cases):
        _write(_compressed(number, None), bridge.raw / "labelsTr" / f"{case}.nii.gz")
    for folder in (bridge.raw, bridge.preprocessed):
        folder.mkdir(exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(student.dataset_json))
    (bridge.preprocessed / "nnUNetPlans.json").write_text(json.dumps(student.plans))
    settings = student.manager.get_configuration(student.configuration)
    (bridge.preprocessed / settings.data_identifier).mkdir()
    for case in cases:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(bridge.preprocessed / settings.data_identifier / case),
            [str(path) for path in student.files(bridge.raw / "imagesTr", case)],
            str(bridge.raw / "labelsTr" / f"{case}.nii.gz"),
            student.manager,
            settings,
            student.dataset_json,
        )
    return bridge


@torch.no_grad()
def _smooth(convolution: torch.nn.Module) -> None:
    """Replace the random kernels of a convolution by random multiples of a smooth one, and remove blocky upsampling."""
    weight = convolution.weight
    if isinstance(convolution, torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d):
        weight.zero_()
        return
    kernel = torch.ones(())
    for side in weight.shape[2:]:
        kernel = kernel[..., None] * torch.tensor({1: [1.0], 2: [1.0, 1.0], 3: [0.25, 0.5, 0.25]}[side])
    weight.copy_(torch.randn(*weight.shape[:2], *[1] * kernel.ndim) * kernel)


def fitted(plan: Plan, images: Path, seed: int) -> torch.nn.Module:
    """Return a network with random features, whose head is fitted to the labels of the first case."""
    torch.manual_seed(seed)
    network = build_network(nnUNetTrainer, plan.experiment).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d):
            _smooth(module)
    labels = images / "labels" / f"{CASES[0]}.nii.gz"
    _write(_compressed(0, None), labels)
    everything = replace(plan, labels=dict(LABELS), order=None)
    data, truth, _ = everything.preprocess(plan.files(images, CASES[0]), labels)
    dim = len(plan.spacing)
    batch = torch.from_numpy(data)[None] if dim == 3 else torch.from_numpy(data).transpose(0, 1)
    batch = torch.nn.functional.pad(batch, [n for side in batch.shape[:1:-1] for n in (0, side % 2)])
    seen = []
    head = network.decoder.seg_layers[-1]
    hook = head.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        network(batch)
    hook.remove()
    values = seen[0].transpose(0, 1) if dim == 2 else seen[0][0]
    values = values[(slice(None), *map(slice, data.shape[1:]))].flatten(1).T
    truth = np.maximum(truth[0], 0).ravel()
    if plan.order is None:
        groups = [[value] for value in sorted(value for name, value in plan.labels.items() if name != "ignore")]
        groups[0] = [value for value in range(4) if all(value not in group for group in groups[1:])]
    else:
        groups = [np.atleast_1d(one).tolist() for name, one in plan.labels.items() if name != "background"]
    wanted = torch.from_numpy(np.stack([np.where(np.isin(truth, group), 3.0, -3.0) for group in groups], 1)).float()
    weight = torch.from_numpy(1 / np.sqrt(np.bincount(truth)[truth])).float()[:, None]  # every label counts
    inputs = torch.cat([values, torch.ones(len(values), 1)], 1)
    left = inputs.T @ (inputs * weight)
    ridge = 1e-4 * left.diagonal().mean() * torch.eye(len(left))
    solution = torch.linalg.solve(left + ridge, inputs.T @ (wanted * weight))
    with torch.no_grad():
        head.weight.copy_(solution[:-1].T.reshape(head.weight.shape))
        head.bias.copy_(solution[-1])
    return network
