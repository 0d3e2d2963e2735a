from nnunet_kd.distillation.methods import FREEKD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFreeKD(DistillationTrainer):
    """FreeKD: wavelet details of every encoder stage follow the teacher's where prompts find them important.

    Zhang et al., 2024. The prompts are tuned on the teacher during the first 5 % of the
    epochs, in which the student trains alone.
    """

    terms = (FREEKD,)
