from nnunet_kd.training.methods import CWD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerCWD(DistillationTrainer):
    """Channel-wise distillation: the spatial distribution of every class's logits follows the teacher's.

    Shu et al., 2021. T = 4 and weight 3, as in the authors' code; the
    paper also uses ``{"temperature": 1, "weight": 5}``.
    """

    terms = (CWD,)
