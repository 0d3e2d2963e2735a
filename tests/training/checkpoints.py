"""Access to the checkpoints of a training."""

import torch

NOW = {"ramp": None}


def checkpoint(workspace, trainer="nnUNetTrainerDCD", plans="nnUNetPlans", configuration="3d_fullres", name="final"):
    folder = workspace.results / f"{trainer}__{plans}__{configuration}"
    return torch.load(folder / "fold_0" / f"checkpoint_{name}.pth", weights_only=False)
