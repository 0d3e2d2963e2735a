from collections.abc import Mapping
from typing import Any, ClassVar

from nnunet_kd.distillation.methods import SOFT_LABELS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerSoftKD(DistillationTrainer):
    """The recipe of nnUNetTrainerKD with stored soft labels, for images with and without labels.

    The student follows the soft labels of ``"nnunet_kd": {"method": {"soft_labels": NAME}}``; cases without a reference
    learn from them alone. Its weights are averaged over the steps. It starts as the pruned teacher if the plans name
    one, and otherwise from random weights.
    """

    terms = (SOFT_LABELS.changed({"rescale": True}),)
    recipe: ClassVar[Mapping[str, Any]] = {"initial_weights": "pruned", "ema_decay": 0.99}
    starts_from_named_teacher = True
