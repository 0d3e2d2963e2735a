"""Plans of a small KD-SAM."""

import json

from nnunet_kd.nnunet.planning import student_plans

TINY = {
    "image_size": 128,
    "blocks": [1, 1, 1, 1],
    "embedding_channels": 32,
    "mlp_dim": 64,
    "num_heads": 4,
    "mask_channels": 4,
}

SCHEDULE = {"num_epochs": 4, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "save_every": 1}


def plans_for(workspace, sam, training=None, name="nnUNetPlans_kd_sam", **method):
    """Write and return the plans of a tiny KD-SAM."""
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    regions = any(isinstance(label, list) for label in workspace.dataset_json["labels"].values())
    plans = student_plans(plans, name=name, network="kd_sam", regions=regions)
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(TINY)
    plans["configurations"]["2d"]["batch_size"] = 2
    given = {"checkpoint": str(sam), "model_type": "tiny", "perceptual_weights": "random", **method}
    plans["nnunet_kd"].update(training={**SCHEDULE, **(training or {})}, method=given)
    (workspace.preprocessed / f"{name}.json").write_text(json.dumps(plans))
    return plans
