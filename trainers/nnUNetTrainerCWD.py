from nnunet_kd.distillation.methods import CWD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerCWD(DistillationTrainer):
    """Channel-wise distillation: the spatial distribution of every class's logits follows the teacher's.

    Shu et al., 2021. T = 4, as in the authors' code. Their weight is 3, in the paper also ``{"temperature": 1,
    "weight": 5}``; on volumes that drowned nnU-Net's own loss (benchmarks/study.md), so it is 0.03 here.
    """

    terms = (CWD,)
