"""Plans of a VM-UNet that is small enough to train in a test."""

import json

from nnunet_kd.nnunet.planning import student_plans
from tests.conftest import SHORT

NAME = "nnUNetPlans_vm_unet"


def plans_for(workspace, training=None):
    """Write the plans of a small VM-UNet, and return them."""
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    plans = student_plans(plans, 12, 4, name=NAME, network="vm_unet")
    content = plans["configurations"]["2d"]
    content["architecture"]["arch_kwargs"].update(depths=1, depths_decoder=1)
    content["batch_size"] = 2
    plans["nnunet_kd"]["training"].update({**SHORT, **(training or {})})
    (workspace.preprocessed / f"{NAME}.json").write_text(json.dumps(plans))
    return plans
