from nnunet_kd.distillation.methods import FITNETS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerFitNets(DistillationTrainer):
    """FitNets: a 1x1x1 regression of every encoder stage's features predicts the teacher's.

    Romero et al., 2015. Weight 1 on the sum over the stages.
    """

    terms = (FITNETS,)
