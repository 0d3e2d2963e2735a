"""Trainings that are killed twenty times, and trainings that continue with another number of processes."""

import pytest

from tests.killing import needs_fork
from tests.training.killed_training import killed_again_and_again
from tests.training.several_processes import train_and_resume


@needs_fork
def test_killed_twenty_times(workspace):
    saved = killed_again_and_again(workspace, kills=20, epochs=60, reach=0.15, seed=1)
    print("epochs saved after each kill:", saved)
    assert len(saved) == 20 and saved[-2] < 60 and len(set(saved)) > 5


@pytest.mark.parametrize("counts", [(4, 2), (2, 1)], ids=str)
def test_shared_by_other_numbers_of_processes(workspace, counts):
    train_and_resume(workspace, counts, "nnUNetTrainerDCD", "dcd", {"ramp": None})
