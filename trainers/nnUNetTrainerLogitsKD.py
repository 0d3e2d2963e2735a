from nnunet_kd.distillation.methods import LOGITS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerLogitsKD(DistillationTrainer):
    """Logit distillation: softened class probabilities of every voxel follow the teacher's.

    Hinton et al., 2015. T = 3; the loss is 0.7 of nnU-Net's plus 0.3 of the distillation term, at
    every resolution of deep supervision.
    """

    terms = (LOGITS,)
