from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerNoKD(DistillationTrainer):
    """The student alone: the "w/o KD" row. Same student, schedule and seed as the distilled ones, no teacher."""
