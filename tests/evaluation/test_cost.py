import pytest
import torch
from torch import nn

from nnunet_kd.evaluation.cost import network_cost
from nnunet_kd.evaluation.pictures import busiest_slice, save_comparison


def test_costs_of_a_network_counted_by_hand():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    cost = network_cost(network, 3, [10, 12])
    assert cost.parameters == 3 * 8 * 9 + 8 * 2 + 2
    assert cost.flops == 2 * 120 * (3 * 8 * 9 + 8 * 2)
    assert cost.activation_bytes == 4 * 120 * (3 + 8)  # the input, and the ReLU's output kept once for two users


def test_busiest_slice_weighs_classes_alike():
    labels = torch.zeros(4, 10, 10, dtype=torch.long)
    labels[1] = 1
    labels[2, :3, :3] = 2
    labels[2, 5, :] = 1
    assert busiest_slice(labels.numpy()) == 2
    assert busiest_slice(torch.zeros(6, 2, 2).long().numpy()) == 3


@pytest.mark.parametrize("cases", [1, 3])
def test_picture_is_written(tmp_path, cases):
    image = torch.rand(20, 24).numpy()
    labels = torch.zeros(20, 24, dtype=torch.long)
    labels[5:9, 5:12] = 1
    rows = {f"case {i}": (image, {"reference": labels.numpy(), "model": 0 * labels.numpy()}) for i in range(cases)}
    save_comparison(tmp_path / "picture.png", rows, {1: "lesion", 2: "core"}, aspect=1.3)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
