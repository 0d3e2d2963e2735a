import pytest
import torch

from nnunet_kd.evaluation.pictures import busiest_slice, draw_comparison


def test_the_busiest_slice_weighs_classes_equally():
    labels = torch.zeros(4, 10, 10, dtype=torch.long)
    labels[1] = 1
    labels[2, :3, :3] = 2
    labels[2, 5, :] = 1
    assert busiest_slice(labels.numpy()) == 2
    assert busiest_slice(torch.zeros(6, 2, 2).long().numpy()) == 3


@pytest.mark.parametrize("cases", [1, 3])
def test_a_picture_has_a_title_per_column_and_a_row_per_case(tmp_path, cases):
    image = torch.rand(20, 24).numpy()
    labels = torch.zeros(20, 24, dtype=torch.long)
    labels[5:9, 5:12] = 1
    rows = {f"case {i}": (image, {"reference": labels.numpy(), "model": 0 * labels.numpy()}) for i in range(cases)}
    figure = draw_comparison(rows, {1: "lesion", 2: "core"}, aspect=1.3)
    axes = figure.axes
    assert [axis.get_title() for axis in axes[:3]] == ["image", "reference", "model"] and len(axes) == 3 * cases
    assert [axis.get_ylabel() for axis in axes[::3]] == list(rows)
    assert [len(axis.collections) for axis in axes[:3]] == [0, 1, 0]  # only the reference contains the lesion
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
