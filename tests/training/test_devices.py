"""Whether everything of a step is on one device, without that device: tensors that stand for a GPU's refuse others."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_kd.teachers.nnunet import find_trainer
from tests.conftest import SHORT


@pytest.fixture
def replaced_parameters(monkeypatch):
    """Modules swap parameters with their converted ones otherwise, which fake tensors cannot."""

    def apply(module, convert, recurse=True):
        for one in module.modules() if recurse else [module]:
            for name, parameter in one._parameters.items():
                if parameter is not None:
                    one._parameters[name] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
            for name, buffer in one._buffers.items():
                one._buffers[name] = None if buffer is None else convert(buffer)
        return module

    monkeypatch.setattr(nn.Module, "_apply", apply)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("NoKD", {}),
        *((method, {"ramp": None}) for method in ("DCD", "LogitsKD", "FitNets", "CWD", "IFVD", "FreeKD", "DualSelfKD")),
        ("FreeKD", {"prompt_epochs": 1}),
    ],
)
def test_a_step(workspace, replaced_parameters, method, options):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=options)
    kind = find_trainer(f"nnUNetTrainer{method}")
    trainer = kind({**plans, "continue_training": False}, "3d_fullres", 0, workspace.dataset_json, torch.device("cuda"))
    trainer.optimize = lambda total, values: {"total": total, **values}  # going backwards needs the real device
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.initialize()
        if trainer.attached is not None:
            trainer.attached.teacher.to(trainer.device)
        size = (trainer.batch_size, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
        images = torch.empty(size)
        with torch.no_grad():
            scales = [
                torch.empty(len(logits), 1, *logits.shape[2:]) for logits in trainer.network(images.to("cuda"))[0]
            ]
        values = trainer.train_step({"data": images, "target": scales})
    assert {value.device.type for value in values.values()} == {"cuda"}
    assert {*trainer.logged_terms()} & {*values} and "total" in values
