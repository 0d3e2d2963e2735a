from nnunet_kd.training.brainseg_dmif import BrainSegDMIFTrainer


class nnUNetTrainerBrainSegDMIF(BrainSegDMIFTrainer):
    """A SAM encoder for each modality, fused as they go, and masks without prompts.

    BrainSegDMIF, eq. 1-14: Adam with learning rate 1e-4, halved at epochs 7 and 12, for 200 epochs. Configuration
    ``2d``; ``nnunet_kd.method`` of the plans may name SAM's weights to start from.
    """

    initial_lr = 1e-4
    num_epochs = 200
