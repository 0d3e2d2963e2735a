"""Variants of the tiny data set: regions, an ignore label, a cascade; each changes a test's own copy."""

import json

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from tests.conftest import Workspace, make_trainer

REGIONS = {"labels": {"background": 0, "whole": [1, 2], "enhancing": 2}, "regions_class_order": [1, 2]}


def describe(workspace: Workspace, **changes) -> None:
    for folder in (workspace.preprocessed, workspace.teacher):
        path = folder / "dataset.json"
        description = {**json.loads(path.read_text()), **changes}
        path.unlink()
        path.write_text(json.dumps(description))


def use_regions(workspace: Workspace) -> None:
    """Replace three classes by two regions."""
    describe(workspace, **REGIONS)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    weights = content["network_weights"]
    for key in [key for key in weights if "seg_layers" in key]:
        weights[key] = weights[key][1:]
    torch.save(content, path)


def use_ignore_label(workspace: Workspace) -> None:
    """Remove the annotation of a third of every case."""
    labels = {**workspace.dataset_json["labels"], "ignore": 3}
    describe(workspace, labels=labels)
    annotated = (-1, 0, 1, 2)
    for folder in workspace.preprocessed.glob("nnUNetPlans_*"):
        for identifier in sorted(path.stem for path in folder.glob("*.pkl")):
            data, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder), [identifier]).load_case(identifier)
            segmentation = np.array(segmentation)
            segmentation[:, :, : segmentation.shape[2] // 3] = 3
            properties["class_locations"] = {key: np.argwhere(np.isin(segmentation, key)) for key in (1, 2, annotated)}
            for path in folder.glob(f"{identifier}*"):
                path.unlink()
            nnUNetDatasetBlosc2.save_case(np.array(data), segmentation, properties, str(folder / identifier))


def use_regions_and_ignore_label(workspace: Workspace) -> None:
    """Use regions and an ignore label."""
    use_ignore_label(workspace)
    use_regions(workspace)
    describe(workspace, labels={**REGIONS["labels"], "ignore": 3}, regions_class_order=[1, 2])


def use_cascade(workspace: Workspace, plans: dict, trainer: str) -> None:
    """Add a second stage, its teacher and the predictions of both first stages; the plans are changed."""
    configurations = plans["configurations"]
    configurations["3d_lowres"] = {**configurations["3d_fullres"], "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    dataset = nnUNetDatasetBlosc2(str(workspace.preprocessed / "nnUNetPlans_3d_fullres"))
    for name in (trainer, "nnUNetTrainer"):
        first = workspace.results / f"{name}__{plans['plans_name']}__3d_lowres"
        folder = first / "predicted_next_stage" / "3d_cascade_fullres"
        folder.mkdir(parents=True)
        for identifier in dataset.identifiers:
            segmentation = np.array(dataset.load_case(identifier)[1])[0]
            nnUNetDatasetBlosc2.save_seg(segmentation, str(folder / identifier))
    stock = {key: value for key, value in plans.items() if key != "nnunet_kd"}
    teacher = make_trainer(nnUNetTrainer, stock, workspace, configuration="3d_cascade_fullres")
    teacher.num_epochs = teacher.num_iterations_per_epoch = teacher.num_val_iterations_per_epoch = 1
    teacher.run_training()
