from dataclasses import replace

from nnunet_kd.training.methods import IFVD, LOGITS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerIFVD(DistillationTrainer):
    """Intra-class feature variation distillation: every voxel lies as far from its class's centre as in the teacher.

    Wang et al., 2020. Weight 200, with the authors' divergence of the class probabilities beside it, weight 10.
    """

    terms = (IFVD, replace(LOGITS, weight=10.0, options={"temperature": 1.0}, scales="full", convex=False))
