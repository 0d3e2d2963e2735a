import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.distillation.targets import LabelCodes

MAP = torch.tensor([[[0, 1, 2], [3, 4, 1]]])  # (1, y, x); 4 is the ignore label if there is one


def regions_of(label_map, manager):
    """Return nnU-Net's training target of a label map."""
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    ignored = [manager.ignore_label] if manager.has_ignore_label else []
    convert = ConvertSegmentationToRegionsTransform(list(manager.foreground_regions) + ignored)
    return convert(segmentation=label_map)["segmentation"][None]


def test_labels():
    codes = LabelCodes(LabelManager({"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}, None))
    assert codes.num_classes == 5 and codes.valid(MAP[None]) is None
    assert torch.equal(codes.classes(MAP[None].float()), MAP)


def test_ignore_label():
    codes = LabelCodes(LabelManager({"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 4}, None))
    assert codes.num_classes == 4
    assert torch.equal(codes.classes(MAP[None].float()), torch.where(MAP == 4, -1, MAP))
    assert torch.equal(codes.valid(MAP[None]), (MAP != 4)[None])


def test_regions_overlap():
    """Labels 2 and 3 lie in the same regions and are therefore one class."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "d": 4}
    manager = LabelManager(labels, regions_class_order=[1, 2, 4])
    codes = LabelCodes(manager)
    target = regions_of(MAP, manager)
    assert target.shape == (1, 3, 2, 3) and codes.valid(target) is None and codes.num_classes == 4
    classes = codes.classes(target)
    assert torch.equal(classes, codes.classes(target.float()))
    assert classes[0, 0, 1] == classes[0, 1, 2] and classes[0, 0, 2] == classes[0, 1, 0]
    assert len(classes.unique()) == 4 and classes.min() >= 0 and classes.max() == 3


@pytest.mark.parametrize("count", [40, 62])
def test_many_regions_need_no_table(count):
    organs = range(1, count)
    manager = LabelManager({"background": 0, "all": list(organs), **{str(i): i for i in organs}}, [1] * count)
    codes = LabelCodes(manager)
    codes.check_classes()
    label_map = torch.arange(count).view(1, 1, count)
    assert torch.equal(codes.classes(regions_of(label_map, manager)).unique(), torch.arange(count))


def test_more_regions_than_bits():
    manager = LabelManager({"background": 0, "all": list(range(1, 63)), **{str(i): i for i in range(1, 63)}}, [1] * 63)
    with pytest.raises(NotImplementedError, match="has 63 regions, but the term's loss can tell only 62 apart"):
        LabelCodes(manager).check_classes()


def test_regions_and_ignore_label():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    manager = LabelManager(labels, regions_class_order=[1, 2])
    codes = LabelCodes(manager)
    target = regions_of(MAP, manager)
    assert target.shape == (1, 3, 2, 3) and codes.num_classes == 3
    assert torch.equal(codes.valid(target), (MAP != 4)[None])
    classes = codes.classes(target)
    assert classes[0, 1, 1] == -1 and len(classes.unique()) == 4
