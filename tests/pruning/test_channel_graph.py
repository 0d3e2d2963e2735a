import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import fx, nn

from nnunet_kd.networks.dra_unet import DRAUNet
from nnunet_kd.pruning.channel_tracing import channel_graph
from tests.pruning.networks import unet, with_random_vectors

NETWORKS = {
    "plain": lambda: unet(4),
    "plain 2-D": lambda: unet(4, 2),
    "deep supervision": lambda: unet(4, deep_supervision=True),
    "batch normalisation": lambda: unet(4, norm_op=nn.BatchNorm3d),
    "residual": lambda: unet(4, 3, ResidualEncoderUNet),
    "residual 2-D": lambda: unet(4, 2, ResidualEncoderUNet),
    "DRA-UNet": lambda: DRAUNet(2, 3, 3, 4),
    "DRA-UNet 3-D": lambda: DRAUNet(2, 3, 3, 4, conv_op=nn.Conv3d, deep_supervision=True),
}


def reordered(graph, network, groups):
    generator = torch.Generator().manual_seed(2)
    graph.reorder(network, {group: torch.randperm(graph.sizes[group], generator=generator) for group in groups})


def outputs(network, images):
    with torch.no_grad():
        given = network(images)
    return given if isinstance(given, list) else [given]


@pytest.mark.parametrize("name", NETWORKS)
def test_reordering_does_not_change_the_output(name):
    network = with_random_vectors(NETWORKS[name]())
    two_axes = any(isinstance(module, nn.Conv2d) for module in network.modules())
    images = torch.randn(2, 2, *[16] * (2 if two_axes else 3))
    graph = channel_graph(network)
    before, weights = outputs(network, images), {k: v.clone() for k, v in network.state_dict().items()}
    reordered(graph, network, graph.free)
    for given, expected in zip(outputs(network, images), before, strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    moved = {
        layer.name
        for layer in graph.layers
        if not torch.equal(network.state_dict()[f"{layer.name}.weight"], weights[f"{layer.name}.weight"])
    }
    assert moved == {layer.name for layer in graph.layers}  # no layer was held unnecessarily
    assert len(graph.free) >= len(graph.sizes) - 2  # the logits of two scales


def test_only_the_groups_of_logits_are_held():
    network = unet(4, deep_supervision=True)
    graph = channel_graph(network)
    images = torch.randn(1, 2, 16, 16, 16)
    before = outputs(network, images)
    reordered(graph, network, graph.sizes.keys() - graph.free)
    assert any((given - was).abs().max() > 0.01 for given, was in zip(outputs(network, images), before, strict=True))


def test_residual_sums_have_one_order():
    graph = channel_graph(unet(4, 3, ResidualEncoderUNet))
    gives = {layer.name: layer.gives for layer in graph.layers}
    assert gives["encoder.stages.1.blocks.0.conv2.conv"] == gives["encoder.stages.1.blocks.1.conv2.conv"]
    assert gives["encoder.stages.1.blocks.0.conv1.conv"] != gives["encoder.stages.1.blocks.0.conv2.conv"]


class Odd(nn.Module):
    """Two convolutions with a given path between them."""

    def __init__(self, path):
        super().__init__()
        self.first, self.other, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.path = path

    def forward(self, images):
        return self.last(self.path(self, self.first(images), self.other(images)))


PATHS = {
    "relu": (lambda self, one, other: torch.relu(one), 1),
    "half of it": (lambda self, one, other: one * 0.5, 1),
    "size": (lambda self, one, other: torch.nn.functional.interpolate(one, size=other.shape[2:]), 1),
    "sum": (lambda self, one, other: one + other, 1),
    "product": (lambda self, one, other: one * torch.sigmoid(other), 1),
    "shared layer": (lambda self, one, other: self.twice(self.twice(one)), 1),
    "depthwise upsampling": (lambda self, one, other: self.up(one), 1),
    "weight of others": (lambda self, one, other: self.normed(one), 0),
    "softmax": (lambda self, one, other: torch.softmax(one, 1), 0),
    "part": (lambda self, one, other: torch.cat((one[:, :2], other[:, :2]), 1), 0),
    "joined elsewhere": (lambda self, one, other: torch.cat((one, other), 2), 0),
    "parameter": (lambda self, one, other: one * self.other.weight[None, :, 0], 0),
    "keyword": (lambda self, one, other: torch.add(one, other, alpha=2), 0),
    "flipped": (lambda self, one, other: one + other.flip(1), 0),
    "cumulated": (lambda self, one, other: torch.cumsum(one, dim=1), 0),
}


def check_freedom(path, free):
    """Check how many groups of the first layer can be reordered, and that the outputs stay when all are."""
    torch.manual_seed(0)
    network = Odd(path)
    graph = channel_graph(network)
    gives = {layer.name: layer.gives for layer in graph.layers}
    assert len(graph.free & set(gives["first"])) == free
    images = torch.randn(2, 2, 4, 4)
    before = outputs(network, images)
    reordered(graph, network, graph.free)
    torch.testing.assert_close(outputs(network, images), before)


@pytest.mark.parametrize("name", PATHS)
def test_operations_between_layers(name):
    check_freedom(*PATHS[name])


@fx.wrap
def sharpened(features, other=None):
    """A network's own function, which is one node of the trace."""
    other = features if other is None else other
    return features * (features - other.mean((2, 3), keepdim=True)).abs()


@pytest.mark.parametrize(
    ("marked", "path", "free"),
    [
        (True, lambda self, one, other: sharpened(one), 1),
        (False, lambda self, one, other: sharpened(one), 0),
        (True, lambda self, one, other: sharpened(one, other), 0),  # of two inputs whose orders can differ
    ],
)
def test_a_function_can_be_marked_as_channelwise(monkeypatch, marked, path, free):
    monkeypatch.setattr(sharpened, "channelwise", marked, raising=False)
    check_freedom(path, free)


def test_layers_that_share_weights_keep_their_order():
    network = Odd(PATHS["relu"][0])
    network.other.weight = network.first.weight
    network.path = lambda self, one, other: torch.cat((one, self.twice(torch.relu(other))), 2)
    graph = channel_graph(network)
    images = torch.randn(2, 2, 4, 4)
    before = outputs(network, images)
    reordered(graph, network, graph.free)
    torch.testing.assert_close(outputs(network, images), before)


def test_a_network_that_cannot_be_traced_is_refused():
    network = Odd(lambda self, one, other: one if one.mean() > 0 else other)
    with pytest.raises(ValueError, match="Odd cannot be traced: "):
        channel_graph(network)
