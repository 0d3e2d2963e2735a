from nnunet_kd.distillation.methods import DCD
from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerDCD(DistillationTrainer):
    """Detail Consistent Distillation: directional wavelet details of every encoder stage follow the teacher's.

    Weight 0.01 and ramp are the authors' for BraTS 2024, the ramp as fractions of the training: epochs 150 to 950 of
    1000. For ISLES 2022 they use 0.05 and, of 1000 epochs, ``[100, 300]``. Their weights are meant for the settings
    ``"transform": "published"`` and ``"projection": "frozen"``, with which the loss is several times smaller; the plans
    in ``plans/`` whose names end in ``_published`` have all of their settings.
    """

    terms = (DCD,)
