"""Plans of a small BrainSegDMIF."""

import json

from nnunet_kd.nnunet.planning import student_plans
from tests.conftest import SHORT

TINY = {
    "image_size": 48,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 4,
    "global_attention": [1, 3],
    "window_size": 3,
    "out_channels": 32,
}

NAME = "nnUNetPlans_brainseg_dmif"


def plans_for(workspace, training=None, method=None, **network):
    """Write and return the plans of a tiny BrainSegDMIF."""
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    plans = student_plans(plans, name=NAME, network="brainseg_dmif")
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update({**TINY, **network})
    plans["configurations"]["2d"]["batch_size"] = 6 if workspace.dataset.endswith("Modalities") else 2
    plans["nnunet_kd"].update(training={**SHORT, **(training or {})}, method=method or {})
    (workspace.preprocessed / f"{NAME}.json").write_text(json.dumps(plans))
    return plans
