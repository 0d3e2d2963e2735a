from nnunet_kd.distillation.methods import LOGITS, SKD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerSKD(DistillationTrainer):
    """Structured distillation: the parts of an image are as similar to each other as in the teacher.

    Liu et al., 2019, without its adversarial part. Weight 0.5, and beside it the divergence of the class probabilities,
    weight 10: the numbers of the authors' code (the paper has 10 for both), but on every stage of the encoder, where
    they have one map.
    """

    terms = (SKD, LOGITS.changed({"weight": 10.0, "temperature": 1.0, "scales": "full", "convex": False}))
