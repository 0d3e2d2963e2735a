from nnunet_kd.distillation.methods import DPRD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerDPRD(DistillationTrainer):
    """Displacement preserving relations: the cases of a batch differ from each other as they do in the teacher.

    Ding et al., 2026. Weight 0.5, reached along a line in the first 15 % of the epochs, and weights of the stages that
    rise with the depth: the authors' for AMOS 2022. They average the student's weights over the steps, too:
    ``"training": {"ema_decay": 0.999}``.
    """

    terms = (DPRD,)
