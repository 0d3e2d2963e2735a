"""Terms whose stages have weights, and what their losses get of the annotation."""

import pytest
import torch

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import DPRD, FITNETS, RECO_KD
from nnunet_kd.distillation.step import TrainStep
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.networks.stages import EncoderStages, match_stages
from tests.losses.random_maps import random_maps

STRIDES = ((1, 1), (2, 2), (4, 4))
STUDENT, TEACHER = (EncoderStages(widths, STRIDES, (16, 12)) for widths in ((3, 4, 5), (6, 8, 10)))
GRIDS = ((16, 12), (8, 6), (4, 3))


class LabelManager:
    """What is read of nnU-Net's: three structures, or two regions that overlap; 4 is ignored."""

    def __init__(self, regions, ignore):
        self.has_regions, self.ignore_label = regions, 4 if ignore else None
        self.all_labels = [0, 1, 2, 3, *([4] if ignore else [])]
        self.foreground_regions = [(1, 2), (2, 3)]
        self.num_segmentation_heads = 4


def step(regions=False, ignore=False):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5 if ignore else 4, (2, 1, 16, 12), generator=generator)
    target = labels.float()
    if regions:
        channels = [(labels == a) | (labels == b) for a, b in ((1, 2), (2, 3))]
        target = torch.cat([*channels, *([labels == 4] if ignore else [])], 1).float()
    features = {}
    for name, stages in (("encoder", STUDENT), ("teacher_encoder", TEACHER)):
        features[name] = [random_maps(grid, width, width) for grid, width in zip(GRIDS, stages.widths, strict=True)]
    now = TrainStep(
        **features,
        logits=[],
        decoder=[],
        teacher_logits=[],
        stages=match_stages(STUDENT, TEACHER),
        targets=[target],
        labels=LabelCodes(LabelManager(regions, ignore)),
        teacher=None,
        task_loss=None,
    )
    return now, labels


def built(method, **numbers):
    return method.changed({"ramp": None, **numbers}, "here").build(100, "here")


def adapters_of(term):
    torch.manual_seed(0)
    return term.adapters(STUDENT, TEACHER).double()


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("method", [DPRD, RECO_KD], ids=["dprd", "reco_kd"])
def test_weighted_sum_over_the_stages(method, regions, ignore):
    (now, labels), term = step(regions, ignore), built(method)
    adapters = adapters_of(term)
    valid = labels < 4 if ignore else None
    if method is DPRD:
        options, stages = {"foreground": (labels > 0) & (labels < 4)}, 3
    else:
        target = now.targets[0][:, :2] if regions else labels
        options, stages = {"target": target, "regions": regions, "valid": valid, "num_classes": 4}, 2
    assert len(adapters) == stages
    weights = term.loss.stage_weights(stages, 2)
    pairs = zip(now.encoder, now.teacher_encoder, adapters, weights, strict=False)
    expected = sum(weight * term.loss(student, teacher, one, **options) for student, teacher, one, weight in pairs)
    torch.testing.assert_close(term(now, adapters), expected)
    assert expected > 0


def test_given_weights_and_stages():
    now = step()[0]
    whole, some = built(DPRD, masked=False, stage_weights=[2, 0, 1]), built(DPRD, masked=False, stages=[2, 0])
    adapters = adapters_of(whole)
    parts = [whole.loss(*each) for each in zip(now.encoder, now.teacher_encoder, adapters, strict=True)]
    torch.testing.assert_close(whole(now, adapters), 2 * parts[0] + parts[2])
    weights = some.loss.stage_weights(2, 2)
    expected = weights[0] * parts[0] + weights[1] * parts[2]
    torch.testing.assert_close(some(now, torch.nn.ModuleList([adapters[0], adapters[2]])), expected)
    assert [len(adapters_of(built(RECO_KD, **given))) for given in ({}, {"deepest": True}, {"stages": [2]})] == [
        2,
        3,
        1,
    ]


def test_frozen_projections_and_the_authors_settings():
    dprd, reco_kd = (method.build(1000) for method in (DPRD, RECO_KD))
    assert not any(one.requires_grad for one in adapters_of(dprd).parameters())
    assert all(one.requires_grad for one in adapters_of(reco_kd).parameters())
    assert [dprd.weight_at(epoch) for epoch in (0, 75, 150, 999)] == pytest.approx([0, 0.25, 0.5, 0.5])
    assert [reco_kd.weight_at(epoch) for epoch in (0, 300, 600)] == pytest.approx([0, 0.005, 0.01])
    assert str(dprd).startswith("dprd: weight 0.5, linear ramp from epoch 0 over 150, DPRDLoss(width=128, masked=True")


def test_memory_of_every_stage():
    adapters = adapters_of(built(DPRD, memory=3))
    assert [tuple(one.recent.teacher.shape) for one in adapters] == [(3, 6, 4, 3), (3, 8, 2, 2), (3, 10, 2, 2)]


class Student:
    """What the distiller reads of a student's experiment."""

    label_manager, patch_size = LabelManager(False, False), (16, 12)

    def __init__(self, batch_size):
        self.batch_size = batch_size


def test_a_single_case_has_nothing_to_be_compared_with():
    with pytest.raises(
        ValueError, match="dprd compares the cases of a batch, and batch_size of the plans is 1: set it"
    ):
        Distiller.for_student([built(DPRD)], Student(1))
    for term, batch in ((built(DPRD), 2), (built(DPRD, memory=1), 1), (built(RECO_KD), 1), (built(FITNETS), 1)):
        assert Distiller.for_student([term], Student(batch)).patch_size == (16, 12)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"stage_weights": []}, r"here: stage_weights must be null or a list of numbers, got \[\]"),
        ({"stage_weights": [1, -1]}, "here: stage_weights must be a number of at least 0, got -1"),
        ({"stage_weights": [0, 0.0]}, "here: stage_weights are all 0: nothing would be distilled"),
        ({"deepest": 1}, "here: deepest must be true or false, got 1"),
        ({"ramp_shape": "sine"}, "here: ramp_shape must be 'cosine' or 'linear', got 'sine'"),
    ],
)
def test_errors_name_the_key(numbers, message):
    with pytest.raises(ValueError, match=message):
        built(DPRD, **numbers)


def test_as_many_weights_as_stages():
    with pytest.raises(ValueError, match="dprd: stage_weights has 2 numbers, 3 stages are distilled"):
        built(DPRD, stage_weights=[1, 2]).check_pairs(match_stages(STUDENT, TEACHER))
