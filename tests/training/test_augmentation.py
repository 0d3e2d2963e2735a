"""nnU-Net's augmentation reduced to mirroring and brightness, or to mirroring and rotation."""

import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.training.augmentation import reduce_augmentation
from tests.conftest import SHORT, make_trainer


def augmentation(patch, dummy_2d=False, cascaded=False):
    scales = [[1.0] * len(patch), [0.5] * len(patch)]
    axes, masks = tuple(range(len(patch))), [True, False]
    return nnUNetTrainer.get_training_transforms(
        patch, (-3.1, 3.1), scales, axes, dummy_2d, masks, cascaded, [1, 2] if cascaded else None, None, None
    )


def names(transforms):
    inner = [one.transform if isinstance(one, RandomTransform) else one for one in transforms.transforms]
    return [type(one).__name__ for one in inner]


@pytest.mark.parametrize("dummy_2d", [False, True])
@pytest.mark.parametrize("cascaded", [False, True])
@pytest.mark.parametrize("rotates", [False, True])
def test_what_is_left_of_nnunets_augmentation(dummy_2d, cascaded, rotates):
    transforms = augmentation((16, 16, 16), dummy_2d, cascaded)
    assert len(names(transforms)) >= 12
    reduce_augmentation(transforms, "flips_and_rotations" if rotates else "flips_and_brightness")
    spatial = ["Convert3DTo2DTransform", "SpatialTransform", "Convert2DTo3DTransform"]
    previous_stage = [
        "MoveSegAsOneHotToDataTransform",
        "ApplyRandomBinaryOperatorTransform",
        "RemoveRandomConnectedComponentFromOneHotEncodingTransform",
    ]
    assert names(transforms) == [
        *(spatial if dummy_2d else spatial[1:2]),
        *([] if rotates else ["MultiplicativeBrightnessTransform"]),
        *("MirrorTransform", "MaskImageTransform", "RemoveLabelTransform"),
        *(previous_stage if cascaded else []),
        "DownsampleSegForDSTransform",
    ]
    (one,) = (one for one in transforms.transforms if type(one).__name__ == "SpatialTransform")
    assert (one.p_rotation, one.p_scaling, one.p_elastic_deform) == (0.2 if rotates else 0, 0, 0)


def test_a_patch_is_cropped_flipped_and_scaled_and_nothing_else():
    transforms = augmentation((8, 8))
    reduce_augmentation(transforms, "flips_and_brightness")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 12, 12, generator=generator)
    inside = torch.ones(1, 12, 12, dtype=torch.int16)
    cropped = image[:, 2:10, 2:10]
    flipped, scaled = set(), set()
    torch.manual_seed(0)
    for _ in range(60):
        patch = transforms(image=image.clone(), segmentation=inside.clone())["image"]
        ratios = {axes: patch / cropped.flip(axes) for axes in ((), (1,), (2,), (1, 2))}
        constant = [
            axes for axes, ratio in ratios.items() if bool((ratio.amax((1, 2)) - ratio.amin((1, 2)) < 1e-5).all())
        ]
        assert len(constant) == 1
        flipped.add(constant[0])
        scaled.update(round(float(factor), 3) for factor in ratios[constant[0]].mean((1, 2)))
    assert len(flipped) == 4
    assert 1.0 in scaled and len(scaled) > 5 and all(0.74 < factor < 1.26 for factor in scaled)


def test_the_setting_reaches_the_loader(workspace):
    for value, count in ((None, 1), ("flips_and_brightness", 0)):
        training = {**SHORT, "augmentation": value}
        trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=training), workspace)
        trainer.initialize()
        loader = trainer.stock_dataloaders()[0]
        assert names(loader.data_loader.transforms).count("GaussianBlurTransform") == count
