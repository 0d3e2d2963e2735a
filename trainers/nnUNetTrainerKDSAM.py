from nnunet_kd.training.kd_sam.trainer import KDSAMTrainer


class nnUNetTrainerKDSAM(KDSAMTrainer):
    """A ResNet-50 learns SAM's image embedding, then SAM's mask decoder, without prompts, is trained on it.

    KD-SAM, eq. 1-4: Adam with learning rate 1e-4 and weight decay 1e-3, the encoder for at most 100 epochs; the
    decoder gets what is left of 200. Configuration ``2d``; ``nnunet_kd.method`` of the plans names SAM's weights.
    """

    initial_lr = 1e-4
    num_epochs = 200
