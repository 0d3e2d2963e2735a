from nnunet_kd.distillation.methods import RKD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerRKD(DistillationTrainer):
    """Relational distillation: distances and angles between the parts of the batch's images are the teacher's.

    Park et al., 2019, on every stage of the encoder, with the weights 25 of distances and 50 of angles of the paper's
    classification. An image has an embedding per octant (2-D: quadrant), where the paper has one per image: with one,
    the loss of a batch of two would be 0.
    """

    terms = (RKD,)
