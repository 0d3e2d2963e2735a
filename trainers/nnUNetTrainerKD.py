from nnunet_kd.training.trainer import DistillationTrainer


class nnUNetTrainerKD(DistillationTrainer):
    """Any mix of terms, listed in the plans.

    ``"nnunet_kd": {"method": {"terms": [{"name": "dcd", "weight": 0.01}, {"name": "logits", "weight": 0.3}]}}``
    """

    terms = None
