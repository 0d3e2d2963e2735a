"""Write the plans files of this folder with nnU-Net's ResEnc planner, from the published geometry of two data sets.

    python plans/generate.py

The planner needs a data set's fingerprint. This script writes one from the numbers below, so that no images are
needed. Both data sets are z-scored per case, so no intensity statistics enter the plans.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_kd.nnunet.planning import student_plans

PLANS = Path(__file__).parent
TEACHER = "nnUNetResEncUNetPlans"
REDUCTION = 4

# Channels, labels, number of cases, and a typical image after cropping to the brain: voxels and spacing (mm), z y x.
# Within what is typical, the shapes are those for which nnU-Net plans the strides of the paper's networks, which its
# parameter counts determine.
DATASETS: dict[str, dict[str, Any]] = {
    "Dataset501_BraTS2024GLI": {
        "channel_names": {"0": "T1N", "1": "T1C", "2": "T2W", "3": "T2F"},
        "labels": {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
        "cases": 1350,
        "shape": [140, 182, 148],
        "spacing": [1.0, 1.0, 1.0],
        "method": {"weight": 0.01, "ramp": [150, 800]},
    },
    "Dataset502_ISLES2022": {
        "channel_names": {"0": "ADC", "1": "DWI", "2": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "cases": 250,
        "shape": [180, 200, 180],
        "spacing": [1.0, 0.9, 0.9],
        "method": {"weight": 0.05, "ramp": [100, 300]},
    },
}

# The settings of configs/dcd_*.yaml in github.com/ClinicaAlpha/DCD-3D-MedSeg that differ from this package's defaults,
# beside each data set's "method".
TRAINING = {
    "num_epochs": 1000,
    "num_iterations_per_epoch": 150,
    "ema_decay": 0.999,
    "early_stopping": 60,
    "final_validation": "best",
}
METHOD = {"wavelet": "db4", "levels": 3, "bands": "directional", "transform": "published", "projection": "frozen"}


def main() -> None:
    """Plan both data sets, and write the plans of teacher, student, and student with the authors' settings."""
    with tempfile.TemporaryDirectory() as scratch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(Path(scratch) / variable)
        for name, facts in DATASETS.items():
            teacher = plan(Path(scratch), name, facts)
            write(name, teacher)
            write(name, student_plans(teacher, REDUCTION, name=f"{TEACHER}_r{REDUCTION}"))
            published = student_plans(teacher, REDUCTION, name=f"{TEACHER}_r{REDUCTION}_published")
            published["nnunet_kd"] |= {
                "teacher": {"checkpoint": "checkpoint_best.pth"},
                "training": TRAINING,
                "method": {**facts["method"], **METHOD},
            }
            write(name, published)


def plan(scratch: Path, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the plans that nnU-Net's ResEnc planner makes for a data set."""
    import SimpleITK
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        ResEncUNetPlanner,
    )

    raw, preprocessed = scratch / "nnUNet_raw" / name, scratch / "nnUNet_preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    image = SimpleITK.GetImageFromArray(np.zeros((2, 2, 2), np.float32))
    for channel in facts["channel_names"]:
        SimpleITK.WriteImage(image, str(raw / "imagesTr" / f"case_{int(channel):04d}.nii.gz"))
    SimpleITK.WriteImage(image, str(raw / "labelsTr" / "case.nii.gz"))
    dataset = {key: facts[key] for key in ("channel_names", "labels")}
    dataset |= {"numTraining": facts["cases"], "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset))
    fingerprint = {
        "spacings": [facts["spacing"]] * 3,
        "shapes_after_crop": [facts["shape"]] * 3,
        "foreground_intensity_properties_per_channel": {channel: {} for channel in facts["channel_names"]},
        "median_relative_size_after_cropping": 1.0,
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    ResEncUNetPlanner(name).plan_experiment()
    plans: dict[str, Any] = json.loads((preprocessed / f"{TEACHER}.json").read_text())
    return plans


def write(dataset: str, plans: dict[str, Any]) -> None:
    """Write one plans file into the folder of its data set."""
    folder = PLANS / dataset
    folder.mkdir(exist_ok=True)
    (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans, indent=4) + "\n")


if __name__ == "__main__":
    main()
