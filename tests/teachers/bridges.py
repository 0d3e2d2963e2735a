"""A student's data set and models that were trained for other images: another spacing, normalisation, labels and so on.

The models are nnU-Net's U-Nets with random features and a head that is fitted to the labels in closed form, so their
segmentations are smooth and have the right structures after a second.
"""

import json
from dataclasses import dataclass, field, replace
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
SHAPE, SPACING = (30, 56, 48), (2.0, 1.0, 1.25)
MODALITIES = ("T1", "T2", "FLAIR")
# how bright oedema, core and cyst are in each modality
_CONTRAST = np.array([[-2, 2, -4], [3, 1, 6], [4, 6, -2]])
LABELS = {"background": 0, "oedema": 1, "core": 2, "cyst": 3}
REGIONS = {"background": 0, "tumour": [1, 2], "core": 2, "cyst": 3}
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a head in three modalities ``(3, z, y, x)`` and its labels ``(z, y, x)``."""
    generator = np.random.default_rng(seed)
    centre = (np.array(SHAPE) - 1) / 2
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")) - centre.reshape(3, 1, 1, 1)
    place = place * np.array(SPACING).reshape(3, 1, 1, 1)  # mm

    def ball(middle, radius):
        return radius - np.sqrt(((place - np.reshape(middle, (3, 1, 1, 1))) ** 2).sum(0))

    shift = generator.uniform(-2, 2, 3)
    head = 1 - np.sqrt(((place / np.reshape([25, 24, 26], (3, 1, 1, 1))) ** 2).sum(0)) > 0
    whole, core, cyst = ball([2, -5, 4] + shift, 12), ball([2, -4, 5] + shift, 7), ball([-6, 12, -10] + shift, 6)
    labels = np.zeros(SHAPE, np.uint8)
    for value, inside in ((1, whole), (2, core), (3, cyst)):
        labels[inside > 0] = value
    parts = [1 / (1 + np.exp(-depth / 0.7)) for depth in (whole, core, cyst)]
    parts[0] = parts[0] - parts[1]
    images = 10 + np.tensordot(_CONTRAST, np.stack(parts), 1)
    noise = gaussian_filter(generator.standard_normal(images.shape), (0, 2, 2, 2))
    return ((images + noise) * head).astype(np.float32), labels


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
    spacing: tuple[float, ...] = (2.0, 1.2, 1.2)
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
                "features_per_stage": [12, 16],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * 2,
                "strides": [[1] * dim, [2] * dim],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
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
        source = images or channels_of(self.root / f"images_of_{plan.name}", plan.channels)
        for fold in folds:
            (folder / f"fold_{fold}").mkdir(parents=True)
            content = {
                "network_weights": fitted(plan, source, seed + hash(str(fold)) % 1000).state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": plan.configuration, "fold": fold},
                "inference_allowed_mirroring_axes": (0, 1),
            }
            torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
        (folder / "plans.json").write_text(json.dumps(plan.plans))
        (folder / "dataset.json").write_text(json.dumps(plan.dataset_json))
        return folder

    def expected(self, plan: Plan, case: str, images: Path, mirroring: bool = True) -> np.ndarray:
        """Return the model's probabilities on the student's grid the long way, all at the original resolution.

        nnU-Net's predictor computes the probabilities of the whole raw image, and the student's preprocessing
        transposes, crops and resamples them, as it does images.
        """
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
        folder = self.results / plan.folder
        folds = tuple(path.name[5:] for path in sorted(folder.glob("fold_*")))
        predictor.initialize_from_trained_model_folder(str(folder), folds)
        array, properties = plan.manager.image_reader_writer_class().read_images(
            [str(path) for path in plan.files(images, case)]
        )
        _, whole = predictor.predict_single_npy_array(array, properties, None, None, True)
        return self.on_student_grid(whole, case)

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


def channels_of(folder: Path, names: tuple[str, ...], change: Any = None) -> Path:
    """Write the images of all cases with these modalities as channels, in a folder of their own."""
    for number, case in enumerate(CASES):
        images = scan(number)[0]
        images = images if change is None else change(images)
        for channel, name in enumerate(names):
            write_image(images[MODALITIES.index(name)], folder / f"{case}_{channel:04d}.nii.gz")
    return folder


def make_bridge(root: Path, student: Plan, monkeypatch: Any) -> Bridge:
    """Make the student's raw and preprocessed data set."""
    bridge = Bridge(root, student)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        monkeypatch.setenv(name, str(root / name))
    channels_of(bridge.raw / "imagesTr", student.channels)
    for number, case in enumerate(CASES):
        write_image(scan(number)[1], bridge.raw / "labelsTr" / f"{case}.nii.gz")
    for folder in (bridge.raw, bridge.preprocessed):
        folder.mkdir(exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(student.dataset_json))
    (bridge.preprocessed / "nnUNetPlans.json").write_text(json.dumps(student.plans))
    settings = student.manager.get_configuration(student.configuration)
    (bridge.preprocessed / settings.data_identifier).mkdir()
    for case in CASES:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(bridge.preprocessed / settings.data_identifier / case),
            [str(path) for path in student.files(bridge.raw / "imagesTr", case)],
            str(bridge.raw / "labelsTr" / f"{case}.nii.gz"),
            student.manager,
            settings,
            student.dataset_json,
        )
    return bridge


def fitted(plan: Plan, images: Path, seed: int) -> torch.nn.Module:
    """Return a network with random features, whose head is fitted to the labels of the first case."""
    torch.manual_seed(seed)
    network = build_network(nnUNetTrainer, plan.experiment).eval()
    labels = images / "labels" / f"{CASES[0]}.nii.gz"
    write_image(scan(0)[1], labels)
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
        groups = [[value] for value in sorted(plan.labels.values())]
        groups[0] = [value for value in range(4) if all(value not in group for group in groups[1:])]
    else:
        groups = [np.atleast_1d(one).tolist() for name, one in plan.labels.items() if name != "background"]
    wanted = torch.from_numpy(np.stack([np.where(np.isin(truth, group), 6.0, -6.0) for group in groups], 1)).float()
    weight = torch.from_numpy(1 / np.sqrt(np.bincount(truth)[truth])).float()[:, None]  # every label counts
    inputs = torch.cat([values, torch.ones(len(values), 1)], 1)
    solution = torch.linalg.lstsq(inputs * weight, wanted * weight).solution
    with torch.no_grad():
        head.weight.copy_(solution[:-1].T.reshape(head.weight.shape))
        head.bias.copy_(solution[-1])
    return network
