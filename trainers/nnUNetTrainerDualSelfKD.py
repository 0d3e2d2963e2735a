from nnunet_kd.distillation.methods import DUAL_SELF
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerDualSelfKD(DistillationTrainer):
    """Dual self-distillation: the network's own levels teach each other, so there is no teacher.

    DSVM-UNet, eq. 2, 3 and 5, with alpha = 1 and beta = 0.5. The paper adds their sum, in 2-D, to its VM-UNet's own
    loss; in a U-Net on volumes it outweighed nnU-Net's (benchmarks/study.md), so its weight is 0.1 here. It trains the
    network of the plans at its full width, unless their ``nnunet_kd.student`` asks for a smaller one.
    """

    reduction = 1
    terms = (DUAL_SELF,)
