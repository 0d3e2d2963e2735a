from nnunet_kd.distillation.methods import SOFT_LABELS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerSAMKD(DistillationTrainer):
    """The student's softened probabilities follow soft labels stored before, by default SAM's.

    SAM-DRA-UNet, eq. 14-17, with tau = 3 and alpha = 0.5 (alpha is not printed). ``nnunet_kd soft-labels`` makes them;
    neither SAM nor any other teacher runs during training.
    """

    terms = (SOFT_LABELS,)
