"""Measure the peak memory and time of predicting a large CT with nnUNetv2_predict and nnunet_kd predict on the CPU.

    python benchmarks/inference_memory.py [--depth 300] [--stock] [--mirroring] [--largest GB]

The CT is made: 512 x 512 voxels of 0.8 mm in DEPTH slices of 1.5 mm. The model has voxels of 1.5 mm, a window of 96
voxels per side, 24 structures and a quarter of nnU-Net's usual widths; its weights are random, so its labels are noise.
That is the worst case for the export, which works hardest where labels change from voxel to voxel. Every command runs
in a process of its own. Its memory is the peak of all its processes together (Linux), and --largest limits the address
space of a command in GB, to find out what a machine of that size can run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from processes import run_measured

STRUCTURES = 24
FOLDER = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def main() -> None:
    """Read the arguments, make the model and the CT in a temporary folder, and measure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--depth", type=int, nargs="+", default=[300], help="numbers of slices")
    options.add_argument("--stock", action="store_true", help="measure nnUNetv2_predict too")
    options.add_argument("--mirroring", action="store_true", help="average over mirrored copies")
    options.add_argument("--largest", type=float, help="address space of a command in GB (default: no limit)")
    options.add_argument("--engine", default="auto", help="engine of nnunet_kd predict (default: auto)")
    options.add_argument("--structures", type=int, default=STRUCTURES, help=f"structures (default: {STRUCTURES})")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        onnx = make_model(root / FOLDER, chosen.structures)
        for depth in chosen.depth:
            images = root / f"images_{depth}"
            make_ct(images, depth)
            shared = ["-step_size", "1", *([] if chosen.mirroring else ["--disable_tta"])]
            ours = ["nnunet_kd", "predict", "-m", str(onnx), "--engine", chosen.engine]
            measure(f"ours, {depth} slices", [*ours, *shared], images, root / f"ours_{depth}", chosen.largest)
            if chosen.stock:
                stock = ["nnUNetv2_predict_from_modelfolder", "-m", str(root / FOLDER), "-f", "0", "-device", "cpu"]
                stock += ["-npp", "1", "-nps", "1"]
                out = root / f"stock_{depth}"
                if measure(f"stock, {depth} slices", [*stock, *shared], images, out, chosen.largest):
                    one, other = (read(root / f"{who}_{depth}" / "ct.nii.gz") for who in ("ours", "stock"))
                    print(f"equal voxels {100 * np.mean(one == other):.4f} %")


def make_model(folder: Path, structures: int) -> Path:
    """Write a model of stock nnU-Net with random weights, export it as ONNX, and return the folder of the export."""
    import torch

    from nnunet_kd.deploy.onnx import export_onnx
    from nnunet_kd.deploy.trained import read_trained
    from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer

    (folder / "fold_0").mkdir(parents=True)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 5,
            "features_per_stage": [8, 16, 32, 64, 80],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 5,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * 4],
            "n_conv_per_stage": [2] * 5,
            "n_conv_per_stage_decoder": [2] * 4,
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    splines = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "made",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [96, 96, 96],
        "spacing": [1.5, 1.5, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**splines, "order": 3},
        "resampling_fn_seg_kwargs": {**splines, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**splines, "order": 1},
        "architecture": architecture,
    }
    plans = {
        "dataset_name": "Dataset999_MadeCT",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 50.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 400.0}
        },
        "configurations": {"3d_fullres": configuration},
    }
    labels = {"background": 0, **{f"structure {number}": number for number in range(1, structures + 1)}}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    network = build_network(find_trainer("nnUNetTrainer"), Experiment(plans, "3d_fullres", described))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    export_onnx(read_trained(folder, ["0"]), folder.parent / "onnx")
    return folder.parent / "onnx"


def make_ct(folder: Path, depth: int) -> None:
    """Write a body of soft tissue in air, with noise."""
    folder.mkdir()
    y, x = np.ogrid[:512, :512]
    body = (y - 256) ** 2 / 160**2 + (x - 256) ** 2 / 220**2 < 1
    generator = np.random.default_rng(0)
    ct = np.empty((depth, 512, 512), dtype=np.int16)
    for plane in ct:
        plane[:] = np.where(body, 40, -1000) + generator.normal(0, 20, body.shape)
    image = sitk.GetImageFromArray(ct)
    image.SetSpacing((0.8, 0.8, 1.5))
    sitk.WriteImage(image, str(folder / "ct_0000.nii.gz"), True, 1)


def measure(name: str, words: list[str], images: Path, out: Path, largest: float | None) -> bool:
    """Run a command, print its seconds and peak memory, and return whether it ended well."""
    limit = None if largest is None else int(largest * 1e9)
    used = run_measured([*words, "-i", str(images), "-o", str(out)], limit)
    how = "" if used.failed is None else f"  died: {used.failed}"
    print(f"{name:<20} {used.seconds:7.1f} s  {used.peak / 1e9:6.2f} GB{how}", flush=True)
    return used.failed is None


def read(path: Path) -> np.ndarray:
    """Return the labels in a file."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


if __name__ == "__main__":
    main()
