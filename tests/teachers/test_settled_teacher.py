"""A teacher that is prepared for a training returns what it returned before."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_kd.teachers.ensemble import TeacherEnsemble
from nnunet_kd.teachers.teacher import Teacher
from tests.small_networks import unet

CPU = torch.device("cpu")
IMAGES = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def teacher(precision=None, **options):
    torch.manual_seed(0)
    options = {"features": True, "logits": True, "deep_supervision": True, **options}
    return Teacher(unet(), precision=precision, **options)


def equal(ours, expected):
    for one, other in zip([*ours[0], *ours[1]], [*expected[0], *expected[1]], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


class Casts(TorchDispatchMode):
    """Count the weights that are cast."""

    def __init__(self, network):
        super().__init__()
        self.weights = {id(parameter) for parameter in network.parameters()}
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.count += id(args[0]) in self.weights
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("features", [True, False])
def test_weights_are_cast_once(features):
    made = teacher("bfloat16", features=features)
    before = made(IMAGES)
    with Casts(made) as casts:
        made(IMAGES)
    made.settle(CPU)
    with Casts(made) as later:
        equal(made(IMAGES), before)
    convolutions = [one for one in made.modules() if isinstance(one, nn.Conv2d | nn.ConvTranspose2d)]
    decoding = [one for one in convolutions if features and one not in [*made.encoder.modules()]]
    assert casts.count == 2 * len(convolutions) and later.count == 2 * len(decoding)  # weights and biases
    assert {one.weight.dtype for one in made.modules() if isinstance(one, nn.InstanceNorm2d)} == {torch.float32}


def test_prompted_features_are_decoded_in_the_precision_of_the_step():
    made = teacher("bfloat16")
    features = [stage.requires_grad_() for stage in made(IMAGES)[1]]
    before = made.decode(features)
    made.settle(CPU)
    assert torch.equal(made.decode(features), before) and before.dtype == torch.float32


def test_in_single_precision_nothing_is_cast():
    made = teacher()
    before = copy.deepcopy(made.state_dict())
    made.settle(CPU)
    assert all(torch.equal(*pair) for pair in zip(before.values(), made.state_dict().values(), strict=True))


class Subclass(nn.Conv2d):
    """A convolution that also uses its weights in another way."""

    def forward(self, images):
        return super().forward(images) * self.weight.norm()


def test_weights_of_other_modules_are_not_cast():
    network = nn.Sequential(Subclass(2, 3, 1), nn.Conv2d(3, 3, 1))
    made = Teacher(network, features=False, logits=True, precision="bfloat16")
    before = made(IMAGES)
    made.settle(CPU)
    equal(made(IMAGES), before)
    assert [layer.weight.dtype for layer in network] == [torch.float32, torch.bfloat16]


@pytest.fixture
def graphs(monkeypatch):
    """Compile without a code generator, and list the compiled graphs."""
    found = []

    def count(graph, inputs):
        found.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_(model, **{**options, "backend": count}))
    torch._dynamo.reset()
    counters.clear()
    yield found
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_compiled_into_one_graph(graphs, precision):
    made = teacher(precision)
    before = made(IMAGES)
    made.settle(CPU, compiles=True)
    for _ in range(3):
        equal(made(IMAGES), before)
    assert len(graphs) == 1 and not counters["graph_break"]
    equal(made(IMAGES, logits=False), ([], before[1]))  # while no term reads logits
    assert len(graphs) == 2 and not counters["graph_break"]


@pytest.mark.slow
def test_every_teacher_of_an_ensemble_is_compiled(graphs):
    made = TeacherEnsemble([teacher(), teacher()], regions=False)
    before = made(IMAGES)
    made.settle(CPU, compiles=True)
    equal(made(IMAGES), before)
    assert graphs and not counters["graph_break"]


def test_a_network_that_does_not_compile_is_left_alone(graphs):
    made = teacher()
    made.encoder.compiles = False
    made.settle(CPU, compiles=True)
    made(IMAGES)
    assert not graphs
