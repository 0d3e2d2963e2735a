"""Helpers that modify the teacher of a workspace and check that it is refused."""

import json

import pytest

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from tests.conftest import SHORT, make_trainer


def refused(workspace, error, message, plans=None, kind=nnUNetTrainerDCD, **options):
    """Check that plans are refused in one sentence and that nothing is left in the results folder."""
    plans = plans or workspace.plans("nnUNetPlans", training=SHORT)
    before = sorted(workspace.results.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        make_trainer(kind, plans, workspace, **options)
    assert "\n" not in str(caught.value)
    assert sorted(workspace.results.rglob("*")) == before


def edit(path, **changes):
    """Change entries of a JSON file."""
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def edit_configuration(workspace, **changes):
    """Change entries of the configuration in the teacher's plans."""
    path = workspace.teacher / "plans.json"
    configurations = json.loads(path.read_text())["configurations"]
    configurations["3d_fullres"].update(changes)
    edit(path, configurations=configurations)
