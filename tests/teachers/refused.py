"""A teacher that is refused, and how a test makes one of the teacher in its own workspace."""

import json

import pytest

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests.conftest import SHORT, make_trainer


def refused(workspace, error, message, plans=None, kind=nnUNetTrainerDCD, **options):
    """No trainer is made of these plans: one sentence says why, and nothing is left in the results."""
    plans = plans or workspace.plans("nnUNetPlans", training=SHORT)
    before = sorted(workspace.results.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        make_trainer(kind, plans, workspace, **options)
    assert "\n" not in str(caught.value)
    assert sorted(workspace.results.rglob("*")) == before


def edit(path, **changes):
    """Change keys of a JSON file."""
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def edit_configuration(workspace, **changes):
    """Change keys of the configuration in the teacher's plans."""
    path = workspace.teacher / "plans.json"
    configurations = json.loads(path.read_text())["configurations"]
    configurations["3d_fullres"].update(changes)
    edit(path, configurations=configurations)
