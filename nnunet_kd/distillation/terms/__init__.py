"""Distillation terms that are added to nnU-Net's loss, one kind per file."""

from nnunet_kd.distillation.terms.base import Term
from nnunet_kd.distillation.terms.logits import LogitsTerm
from nnunet_kd.distillation.terms.prompt import PromptTerm
from nnunet_kd.distillation.terms.soft_labels import SoftLabelTerm
from nnunet_kd.distillation.terms.stage import StageTerm
from nnunet_kd.distillation.terms.weighted import WeightedStageTerm
from nnunet_kd.distillation.terms.within import SelfTerm

__all__ = [
    "LogitsTerm",
    "PromptTerm",
    "SelfTerm",
    "SoftLabelTerm",
    "StageTerm",
    "Term",
    "WeightedStageTerm",
]
