from nnunet_kd.distillation.methods import CIRKD, LOGITS
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerCIRKD(DistillationTrainer):
    """Cross-image relational distillation: each voxel is as similar as in the teacher to voxels of other images.

    Yang et al., 2022. Weight 1 within the batch, 0.1 for each memory, and beside them the divergence of the class
    probabilities, weight 1: the authors' numbers, but on every stage of the encoder, pooled, where they have one map.
    """

    terms = (CIRKD, LOGITS.changed({"weight": 1.0, "temperature": 1.0, "scales": "full", "convex": False}))
