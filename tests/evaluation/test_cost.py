import torch
from torch import nn

from nnunet_kd.evaluation.cost import network_cost


def test_costs_of_a_network_counted_by_hand():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    cost = network_cost(network, 3, [10, 12])
    assert cost.parameters == 3 * 8 * 9 + 8 * 2 + 2
    assert cost.flops == 2 * 120 * (3 * 8 * 9 + 8 * 2)
    assert cost.activation_bytes == 4 * 120 * (
        3 + 8
    )  # the input and the ReLU's output, which is kept once for two consumers
