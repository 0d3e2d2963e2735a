from collections.abc import Mapping
from typing import Any, ClassVar

from nnunet_kd.distillation.methods import Method
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerKD(DistillationTrainer):
    """This package's recipe (benchmarks/study.md has what it gives); or any mix of terms, listed in the plans.

    The teacher is pruned: the student has the channels with which the teacher's layers lose least (Luo et al., 2017),
    and its convolutions are fitted, one after the other, to the outputs of its teacher's (He et al., 2017), all before
    the first epoch. It then trains on the labels, as fast as without a teacher, and its weights are averaged over the
    steps.

    ``"nnunet_kd": {"method": {"terms": [{"name": "dcd", "weight": 0.01}, {"name": "logits", "weight": 0.3}]}}`` trains
    with these terms instead, from random weights; ``"add"`` adds terms to the recipe.
    """

    terms: ClassVar[tuple[Method, ...]] = ()
    recipe: ClassVar[Mapping[str, Any]] = {"initial_weights": "pruned", "ema_decay": 0.99}
