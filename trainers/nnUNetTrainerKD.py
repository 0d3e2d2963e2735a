from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from nnunet_kd.training.methods import LOGITS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerKD(DistillationTrainer):
    """This package's recipe (benchmarks/study.md has what it gives); or any mix of terms, listed in the plans.

    The student's convolutions are fitted, one after the other, to the outputs of its teacher's before the first epoch
    (He et al., 2017); then the class probabilities of every voxel follow the teacher's, T = 1, at every resolution of
    deep supervision, the loss being half of nnU-Net's and half of that.

    ``"nnunet_kd": {"method": {"terms": [{"name": "dcd", "weight": 0.01}, {"name": "logits", "weight": 0.3}]}}`` trains
    with these terms instead, from random weights.
    """

    terms = (replace(LOGITS, weight=0.5, options={"temperature": 1.0}),)
    recipe: ClassVar[Mapping[str, Any]] = {"initial_weights": "reconstructed"}
