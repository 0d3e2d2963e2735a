from nnunet_kd.distillation.methods import IFVD, LOGITS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerIFVD(DistillationTrainer):
    """Intra-class feature variation distillation: every voxel lies as far from its class's centre as in the teacher.

    Wang et al., 2020. Weight 200, and beside it the divergence of the class probabilities, weight 10: the authors'
    numbers, but on every stage of the encoder and summed over the classes. They have one feature map and the mean over
    the classes, which "stages" and a smaller weight of the term "logits" give.
    """

    terms = (IFVD, LOGITS.changed({"weight": 10.0, "temperature": 1.0, "scales": "full", "convex": False}))
