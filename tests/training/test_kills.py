"""A training that is killed at any moment resumes from its last save and ends like an undisturbed one."""

import pytest

from tests.killing import killed_at_rename, needs_fork
from tests.training.killed_training import KilledTraining, killed_again_and_again, train

pytestmark = needs_fork


@pytest.mark.slow
def test_killed_at_random_times(workspace):
    saved = killed_again_and_again(workspace, kills=4, epochs=4, reach=0.9, seed=0)
    assert saved[-1] > 0  # otherwise nothing was tested


@pytest.mark.slow
def test_memories_survive_kills(workspace):
    """CIRKD's memories are among the adapters, which are compared bit by bit."""
    training = KilledTraining(workspace, 4, "CIRKD")
    assert any(name.endswith("pixels") for name in training.expected["nnunet_kd"]["adapters"])
    for number in (1, 0):
        ended = training.run(None, killed_at_rename, number, True, train)
        assert not ended.finished, ended.output
        training.check()
    assert training.saved > 0
    training.finish()


@pytest.mark.slow
@pytest.mark.parametrize("afterwards", [False, True], ids=["right before", "right after"])
def test_killed_while_it_saves(workspace, afterwards):
    """Every save renames the latest checkpoint, then the best one."""
    training = KilledTraining(workspace, 4)
    for number in (1, 0):
        ended = training.run(None, killed_at_rename, number, afterwards, train)
        assert not ended.finished, ended.output
        training.check()
    training.finish()
