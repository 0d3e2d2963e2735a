from nnunet_kd.distillation.methods import RECO_KD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerReCoKD(DistillationTrainer):
    """Region- and context-aware distillation: features follow the teacher's, structures of every size alike.

    Lan et al., 2026. Weight 0.01, reached along a line in the first 60 % of the epochs, weights of the stages that fall
    with the depth, and not the deepest stage: the numbers of the authors' code.
    """

    terms = (RECO_KD,)
