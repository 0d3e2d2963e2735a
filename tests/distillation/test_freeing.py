"""Outputs of the teacher are freed once no later term reads them."""

import weakref

import torch
from torch import nn

from nnunet_kd.distillation.distiller import Distiller
from nnunet_kd.distillation.methods import FITNETS, FREEKD, LOGITS, build_terms
from nnunet_kd.distillation.student import StudentOutputs
from nnunet_kd.distillation.targets import LabelCodes
from nnunet_kd.teachers.teacher import Teacher
from tests.small_networks import unet


class Labels:
    has_regions, ignore_label, num_segmentation_heads = False, None, 3


class Watched(nn.Module):
    """A teacher whose outputs can be looked at without keeping them."""

    def __init__(self):
        super().__init__()
        self.inner = Teacher(unet(8), logits=True, deep_supervision=True)
        self.stages = self.inner.stages

    def forward(self, images, logits=True):
        scales, features = self.inner(images, logits)
        self.made = {"logits": weakref.ref(scales[0]) if scales else None}
        self.made.update((stage, weakref.ref(one)) for stage, one in enumerate(features))
        return scales, features

    def decode(self, features):
        return self.inner.decode(features)

    @property
    def alive(self):
        return {name for name, made in self.made.items() if made is not None and made() is not None}


def alive_in_losses(terms, epoch=1):
    """Return the outputs of the teacher that exist when a loss begins, by loss."""
    student, teacher = unet(4), Watched()
    distiller = Distiller(terms, LabelCodes(Labels()))
    distiller.attach(teacher, [(0, 0), (1, 1), (2, 2)])
    alive = {}
    for term in terms:
        original = term.loss.forward

        def forward(*given, name=term.name, original=original, **options):
            alive.setdefault(name, teacher.alive)
            return original(*given, **options)

        term.loss.forward = forward
    images = torch.randn(1, 2, 16, 16)
    features = student.encoder(images)
    outputs = StudentOutputs(student.decoder(features), features, [])
    target = [torch.zeros(1, 1, size, size) for size in (16, 8)]
    adapters = distiller.adapters(student)
    values = distiller(images, outputs, target, epoch, adapters=adapters, task_loss=lambda logits, _: logits.mean())
    assert not teacher.alive
    return alive, values


def test_features_and_logits_are_freed_in_the_order_of_the_terms():
    numbers = {"terms": [{"name": "fitnets", "stages": [1]}, {"name": "logits"}]}
    alive, values = alive_in_losses(build_terms((), numbers, 10))
    assert alive == {"fitnets": {"logits", 1}, "logits": {"logits"}} and {*values} == {*alive}
    numbers["terms"].reverse()
    alive, _ = alive_in_losses(build_terms((), numbers, 10))
    assert alive == {"logits": {"logits", 1}, "fitnets": {1}}


def test_all_features_remain_while_prompts_are_tuned():
    terms = build_terms((LOGITS, FITNETS.changed({"stages": [0]}), FREEKD), {}, 10)
    alive, values = alive_in_losses(terms, epoch=0)
    assert alive["fitnets"] == {"logits", 0, 1, 2} and "freekd_prompts" in values
