"""Compiled students, also where DDP splits the compiled forward pass, have the gradients of eager ones."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_kd.training.kd_sam.phases import DECODER, ENCODER, PhasedStudent


class Decoder(nn.Module):
    """Convolutions that, as SAM's decoder, also take the size of the images."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*layers())

    def forward(self, embeddings, _size):
        return self.layers(embeddings)


def layers():
    return [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())]


def phased(phase):
    torch.manual_seed(0)
    student = nn.Module()
    student.encoder, student.decoder = nn.Sequential(*layers()), Decoder()
    joint = PhasedStudent(student, nn.ModuleDict(), encoder=False)
    joint.learns = phase
    return joint.train()


def gradients(joint, network):
    """Return the gradients of all parameters, zeros for the half that does not learn, as DDP asks for."""
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    total = network(images).square().sum() + 0 * sum(parameter.sum() for parameter in joint.parameters())
    total.backward()
    return {name: parameter.grad for name, parameter in joint.named_parameters()}


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    """One process with gloo, and buckets so small that a compiled forward pass is split at nearly every layer."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("phase", [ENCODER, DECODER])
def test_kd_sams_phases_compiled_under_ddp(one_process, phase):
    joint = phased(phase)
    expected = gradients(joint, joint)
    learning = {name for name, gradient in expected.items() if gradient.any()}
    assert learning and all(phase in name for name in learning)
    torch._dynamo.reset()
    joint = phased(phase)
    parts = []

    def count(graph, inputs):
        parts.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    ours = gradients(joint, DistributedDataParallel(torch.compile(joint, backend=count), bucket_cap_mb=0.0006))
    assert len(parts) >= 3
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
