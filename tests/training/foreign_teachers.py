"""Teachers of other channels, labels or spacing, made from the teacher of a workspace; each gives known answers."""

import json
import math
import shutil
from pathlib import Path

import torch

from tests.conftest import Workspace

CHANNELS = ("DWI", "FLAIR", "T1", "T1C")
SPLIT = {"background": 0, "enhancing": 1, "oedema_left": 2, "oedema_right": 3, "vessel": 4}
HEADS_OF_SPLIT = [0, 2, 1, 1, 0]  # the workspace's teacher: background, oedema, enhancing
BIAS_OF_SPLIT = [0, 0, -math.log(2), -math.log(2), -40]


def copied(workspace: Workspace, **dataset) -> Path:
    """Copy the teacher to a folder outside nnU-Net's results, and change entries of its ``dataset.json``."""
    folder = workspace.root / "from_a_colleague" / workspace.teacher.name
    shutil.copytree(workspace.teacher, folder)
    change(folder / "dataset.json", **dataset)
    return folder


def change(path: Path, **changes) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_configuration(folder: Path, **changes) -> None:
    """Change entries of the configuration in a teacher's plans."""
    configurations = json.loads((folder / "plans.json").read_text())["configurations"]
    configurations["3d_fullres"].update(changes)
    change(folder / "plans.json", configurations=configurations)


def with_ignored_channel(workspace: Workspace) -> Path:
    """Return a teacher of four channels in another order, whose additional one has no influence."""
    folder = copied(workspace, channel_names={str(number): name for number, name in enumerate(CHANNELS)})
    schemes, masks = ["ZScoreNormalization"] * 4, [False] * 4
    change_configuration(folder, normalization_schemes=schemes, use_mask_for_norm=masks)

    def wider(name, weight):
        if weight.dim() != 5 or weight.shape[1] != 3:
            return weight
        return torch.cat((torch.zeros_like(weight[:, :1]), weight[:, [2, 0, 1]]), 1)

    _change_weights(folder, wider)
    return folder


def with_split_labels(workspace: Workspace) -> Path:
    """Return a teacher of more structures, whose probabilities for those of the data set are the same if merged."""
    folder = copied(workspace, labels=SPLIT)

    def more(name, weight):
        if "seg_layers" not in name:
            return weight
        weight = weight[HEADS_OF_SPLIT]
        return weight + torch.tensor(BIAS_OF_SPLIT).to(weight) if name.endswith("bias") else weight

    _change_weights(folder, more)
    return folder


def _change_weights(folder: Path, changed) -> None:
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    weights = content["network_weights"]
    content["network_weights"] = {name: changed(name, weight) for name, weight in weights.items()}
    torch.save(content, path)
