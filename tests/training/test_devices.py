"""Training steps on a simulated GPU.

Fake tensors of a GPU refuse those of other devices, and autocast gives them the types that a GPU would, float16 among
them. Complete steps use the mixed precision of the CPU, in bfloat16.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_kd import wavelets
from nnunet_kd.nnunet.experiment import find_trainer
from nnunet_kd.teachers.sam_embeddings import Colours, SamEmbedder
from nnunet_kd.trainers.nnUNetTrainerBrainSegDMIF import nnUNetTrainerBrainSegDMIF
from nnunet_kd.trainers.nnUNetTrainerKDSAM import nnUNetTrainerKDSAM
from nnunet_kd.training import trainer as trainer_file
from nnunet_kd.training.kd_sam.phases import DECODER, ENCODER, EncoderProgress
from tests.conftest import SHORT, make_trainer
from tests.training import variants
from tests.training.small_brainseg_dmif import plans_for as brainseg_dmif
from tests.training.small_kd_sam import plans_for as kd_sam
from tests.training.stored_labels import store_of


@pytest.fixture(autouse=True)
def no_fake_constants():
    """Clear cached matrices, which the next test could not use because they have no data."""
    yield
    wavelets.forget_constants()


@pytest.fixture(autouse=True)
def autocast_for_gpus(monkeypatch):
    """Let ``torch.autocast("cuda")`` work on machines without a GPU, where it does nothing."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)


@pytest.fixture
def replaced_parameters(monkeypatch):
    """Let modules replace parameters when converted instead of swapping them, which fake tensors do not support."""

    def apply(module, convert, recurse=True):
        for one in module.modules() if recurse else [module]:
            for name, parameter in one._parameters.items():
                if parameter is not None:
                    one._parameters[name] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
            for name, buffer in one._buffers.items():
                one._buffers[name] = None if buffer is None else convert(buffer)
        return module

    monkeypatch.setattr(nn.Module, "_apply", apply)


def on_a_gpu(kind, plans, workspace, configuration="3d_fullres"):
    """Make a trainer as nnU-Net's command does, but without the backward pass, which needs the real device."""
    trainer = kind(
        {**plans, "continue_training": False}, configuration, 0, workspace.dataset_json, torch.device("cuda")
    )
    trainer.optimize = lambda total, values: {"total": total, **values}
    return trainer


def step(trainer, stored=0):
    """Return the values of a step; ``stored`` is the number of channels added to those of the images."""
    if trainer.distiller.teacher is not None:
        trainer.distiller.teacher.settle(trainer.device)
    size = trainer.configuration_manager.patch_size
    images = torch.empty(trainer.batch_size, trainer.num_input_channels + stored, *size)
    channels = trainer.label_manager.num_segmentation_heads if trainer.label_manager.has_regions else 1
    scales = [torch.empty(len(images), channels, *size)]
    for factors in trainer._get_deep_supervision_scales()[1:] if trainer.enable_deep_supervision else []:
        scales.append(torch.empty(len(images), channels, *(int(n * f) for n, f in zip(size, factors, strict=True))))
    types = set()
    convolutions = [one for one in trainer.trained().student.modules() if isinstance(one, nn.Conv2d | nn.Conv3d)]
    hooks = [one.register_forward_hook(lambda *given: types.add(given[2].dtype)) for one in convolutions]
    values = trainer.train_step({"data": images, "target": scales if trainer.enable_deep_supervision else scales[0]})
    for hook in hooks:
        hook.remove()
    assert types == {torch.float16}
    assert {value.device.type for value in values.values()} == {"cuda"}
    assert {value.dtype for value in values.values()} == {torch.float32}
    return {*values} - {"total", "loss"}


every_step = pytest.mark.parametrize(
    ("method", "options", "values"),
    [
        ("NoKD", {}, []),
        ("DCD", {"ramp": None}, ["dcd"]),
        ("LogitsKD", {}, ["logits"]),
        ("FitNets", {}, ["fitnets"]),
        ("CWD", {}, ["cwd"]),
        ("IFVD", {}, ["ifvd", "logits"]),
        ("DPRD", {"ramp": None}, ["dprd"]),
        ("ReCoKD", {"ramp": None}, ["reco_kd"]),
        ("FreeKD", {}, ["freekd"]),
        ("FreeKD", {}, ["freekd_prompts"]),
        ("SAMKD", {}, ["soft_labels"]),
        ("DualSelfKD", {}, ["dual_self"]),
        ("RKD", {}, ["rkd"]),
        ("CIRKD", {}, ["cirkd", "logits"]),
        ("SKD", {}, ["skd", "logits"]),
    ],
)


def take_a_step(workspace, method, options, values):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=options)
    if method == "SAMKD":
        store_of(workspace)
    trainer = on_a_gpu(find_trainer(f"nnUNetTrainer{method}"), plans, workspace)
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.initialize()
        trainer.current_epoch = 0 if values == ["freekd_prompts"] else 1
        stored = trainer.label_manager.num_segmentation_heads + 1 if method == "SAMKD" else 0
        assert step(trainer, stored) == {"segmentation", *values}


@every_step
def test_a_step(workspace, replaced_parameters, method, options, values):
    take_a_step(workspace, method, options, values)


@pytest.mark.slow
@every_step
def test_a_step_with_regions(workspace, replaced_parameters, method, options, values):
    """An ignore label cannot be simulated: nnU-Net's loss then asks how many voxels count."""
    variants.use_regions(workspace)
    take_a_step(workspace, method, options, values)


@pytest.mark.slow
@every_step
def test_a_step_in_mixed_precision(workspace, monkeypatch, method, options, values):
    """Take a complete step with the settings that nnU-Net uses on a GPU, in 2-D, where it is quick on a CPU."""
    if method == "SAMKD":
        store_of(workspace, "2d")
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=options)
    trainer = make_trainer(find_trainer(f"nnUNetTrainer{method}"), plans, workspace, configuration="2d")
    types = []
    trainer.on_train_start()
    trainer.trained().register_forward_hook(lambda _, __, output: types.append(output[0][0].dtype))
    monkeypatch.setattr(trainer_file, "nullcontext", lambda: torch.autocast("cpu", torch.bfloat16))
    trainer.current_epoch = 0 if values == ["freekd_prompts"] else 1
    before = [parameter.clone() for parameter in trainer.trained().student.parameters()]
    numbers = trainer.train_step(next(trainer.dataloader_train))
    assert types == [torch.bfloat16] and {*values} <= {*numbers}
    assert all(np.isfinite(value) for value in numbers.values()) and not numbers["skipped_steps"]
    assert any(not torch.equal(*pair) for pair in zip(before, trainer.trained().student.parameters(), strict=True))


def test_a_step_of_brainseg_dmif(workspace, replaced_parameters):
    trainer = on_a_gpu(nnUNetTrainerBrainSegDMIF, brainseg_dmif(workspace), workspace, "2d")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.initialize()
        assert step(trainer) == {"segmentation"}


def test_a_step_of_both_phases_of_kd_sam(workspace, sam, replaced_parameters):
    trainer = on_a_gpu(nnUNetTrainerKDSAM, kd_sam(workspace, sam), workspace, "2d")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.initialize()
        colours = Colours.of(trainer.configuration_manager.normalization_schemes, None)
        trainer.embedder = SamEmbedder(trainer.sam(), colours, trainer.device)
        trainer.perceptual.to(trainer.device)
        trainer.trained().learns = ENCODER
        assert step(trainer) == {"embedding_mse", "embedding_perceptual"}
        trainer.progress = EncoderProgress(end=0)
        trainer.trained().learns = DECODER
        assert step(trainer) == {"segmentation"}
