"""All trainers in all kinds of nnU-Net experiments, through nnU-Net's life cycle."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import make_trainer
from tests.training import variants
from tests.training.methods import FAST_ONES_FIRST, METHODS, READ_LABELS, store_if_read, trainer_class

TERMS = {
    "IFVD": ["ifvd", "logits"],
    "KD": ["dcd", "logits", "ifvd", "dual_self"],
    "KD recipe": [],
    "DualSelfKD": ["dual_self"],
    "LogitsKD": ["logits"],
    "SoftKD": ["soft_labels"],
    "CIRKD": ["cirkd", "logits"],
    "SKD": ["skd", "logits"],
    "ReCoKD": ["reco_kd"],
}


def train_one_epoch(workspace, method, plans=None, deep_supervision=True, **options):
    """Train for one epoch, or for two with FreeKD, whose first epoch tunes its prompts."""
    epochs = 2 if method == "FreeKD" else 1
    training = {"num_epochs": epochs, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    plans = plans or workspace.plans("nnUNetPlans")
    plans["nnunet_kd"] = {"training": training, "method": METHODS[method]}
    (workspace.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    store_if_read(workspace, method, options.get("configuration", "3d_fullres"))
    trainer = make_trainer(trainer_class(method), plans, workspace, **options)
    trainer.enable_deep_supervision = deep_supervision
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    for term in TERMS.get(method, [method.lower()]):
        assert len(logged[term]) == epochs and np.isfinite(logged[term][-1]) and logged[term][-1] > 0, term
    assert np.isfinite(logged["train_losses"]).all()
    keys = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)["network_weights"].keys()
    assert keys == trainer.trained().student.state_dict().keys()
    return trainer


every_method = pytest.mark.parametrize("method", FAST_ONES_FIRST)
reading_labels = pytest.mark.parametrize("method", READ_LABELS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_configurations(workspace, method, configuration):
    train_one_epoch(workspace, method, configuration=configuration)


@reading_labels
def test_regions(workspace, method):
    variants.use_regions(workspace)
    trainer = train_one_epoch(workspace, method)
    assert trainer.label_manager.has_regions and trainer.label_manager.ignore_label is None


@reading_labels
def test_ignore_label(workspace, method):
    variants.use_ignore_label(workspace)
    trainer = train_one_epoch(workspace, method)
    assert trainer.label_manager.ignore_label == 3
    trainer.on_train_start()
    assert (next(trainer.dataloader_train)["target"][0] == 3).any()


@every_method
def test_regions_and_ignore_label(workspace, method):
    variants.use_regions_and_ignore_label(workspace)
    trainer = train_one_epoch(workspace, method)
    assert trainer.label_manager.has_regions and trainer.label_manager.ignore_label == 3


@every_method
def test_deep_supervision_off(workspace, method):
    train_one_epoch(workspace, method, deep_supervision=False)


@every_method
def test_cascade(workspace, method):
    plans = workspace.plans("nnUNetPlans")
    variants.use_cascade(workspace, plans, trainer_class(method).__name__)
    trainer = train_one_epoch(workspace, method, plans, configuration="3d_cascade_fullres")
    assert trainer.is_cascaded and trainer.num_input_channels == 5  # three images, two classes of the first stage


@pytest.mark.parametrize("method", ["DCD", "FreeKD", "IFVD", "LogitsKD"])
def test_student_with_another_depth_and_patch_size(workspace, method):
    """The student has one stage less than the teacher, and a larger patch."""
    plans = workspace.plans("nnUNetPlans")
    content = plans["configurations"]["3d_fullres"]
    content["patch_size"] = [2 * size if size < 16 else size for size in content["patch_size"]]
    arguments = content["architecture"]["arch_kwargs"]
    arguments["n_stages"] -= 1
    for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder"):
        arguments[key] = arguments[key][:-1]
    trainer = train_one_epoch(
        workspace, method, plans, deep_supervision=False
    )  # nnU-Net has no weights of scales for 2 stages
    if method != "LogitsKD":
        assert trainer.distiller.stages == [(0, 0), (1, 1)]


def test_teacher_without_deep_supervision_teaches_at_full_resolution(workspace):
    """Its heads at lower resolutions were never trained, which nnU-Net records in debug.json."""
    path = workspace.teacher / "fold_0" / "debug.json"
    notes = json.loads(path.read_text()) if path.is_file() else {}
    for trained, scales in (("True", 2), ("False", 1)):
        path.write_text(json.dumps({**notes, "enable_deep_supervision": trained}))
        trainer = make_trainer(trainer_class("LogitsKD"), workspace.plans("nnUNetPlans"), workspace)
        decoder = trainer.distiller.teacher.network.decoder
        patch = trainer.configuration_manager.patch_size
        logits, _ = trainer.distiller.teacher(torch.randn(1, 3, *patch))
        assert decoder.deep_supervision == (trained == "True")
        assert len(logits) == min(scales, max(len(decoder.seg_layers) - 1, 1))
