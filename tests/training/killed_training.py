"""A training that is killed repeatedly, compared with an undisturbed one."""

import shutil
import sys

import numpy as np
import torch

from tests.conftest import Workspace
from tests.killing import run_killed, times_of_all_phases

SCHEDULE = {"num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "save_every": 1, "ema_decay": 0.9}

FOLDER = "nnUNetTrainerDCD__killed__3d_fullres"

FILES = (
    "checkpoint_final.pth",
    "checkpoint_latest.pth",
    "checkpoint_best.pth",
)  # in the order in which nnU-Net's --c looks for them


def train(*words: str) -> None:
    """Run nnUNetv2_train in this process without nnU-Net's plots, which take longer than the epochs."""
    import multiprocessing

    from nnunetv2.run.run_training import run_training_entry
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    LocalLogger.plot_progress_png = lambda *_: None
    multiprocessing.cpu_count = lambda: 1  # nnU-Net uses it as the number of threads
    sys.argv = ["nnUNetv2_train", "598", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-p", "killed", *words]
    sys.argv += ["-device", "cpu"]
    run_training_entry()


class KilledTraining:
    """A training that is compared with an undisturbed one.

    Args:
        workspace: The workspace of both trainings.
        epochs: The number of epochs of both.
        method: The method of both.
        changes: Of their other settings.
    """

    def __init__(self, workspace: Workspace, epochs: int, method: str = "DCD", **changes) -> None:
        training = {**SCHEDULE, "num_epochs": epochs, **changes}
        workspace.plans("killed", training=training, teacher={"plans": "nnUNetPlans"}, method={"ramp": [1, 2]})
        self.workspace = workspace
        self.method = method
        self.fold = workspace.results / FOLDER.replace("DCD", method) / "fold_0"
        self.saved = 0
        whole = self.run(None)
        assert whole.finished and whole.exit_code == 0, whole.output
        self.seconds = whole.seconds
        self.expected = torch.load(self.fold / FILES[0], weights_only=False)
        shutil.rmtree(self.fold)

    def run(self, after, function=train, *arguments):
        words = ["-tr", f"nnUNetTrainer{self.method}", *(["--c"] if self.newest() is not None else [])]
        return run_killed(
            function,
            *arguments,
            *words,
            log=self.workspace.root / "killed.log",
            after=after,
            environment=self.workspace.environment(),
        )

    def newest(self):
        """Return the checkpoint from which --c resumes, or ``None`` if nothing has been saved."""
        there = [self.fold / name for name in FILES if (self.fold / name).is_file()]
        return there[0] if there else None

    def check(self) -> None:
        """Check that the newest save is complete, not older than before, and equal to the undisturbed training's."""
        path = self.newest()
        assert path is not None or self.saved == 0, "a save is lost"
        if path is None:
            return
        for file in self.fold.glob("*.pth"):  # every file is complete
            torch.load(file, weights_only=False)
        content = torch.load(path, weights_only=False)
        assert content["current_epoch"] >= self.saved
        self.saved = content["current_epoch"]
        logged, expected = content["logging"], self.expected["logging"]
        for name in ("train_losses", "val_losses", self.method.lower(), "segmentation", "ema_fg_dice", "lrs"):
            np.testing.assert_array_equal(logged[name], expected[name][: self.saved], err_msg=name)

    def finish(self) -> None:
        """Resume to the end, and check that everything equals the undisturbed training bit by bit."""
        last = self.run(None)
        assert last.exit_code == 0, last.output
        self.check()
        content = torch.load(self.fold / FILES[0], weights_only=False)
        for get in (
            lambda saved: saved["network_weights"],
            lambda saved: saved["optimizer_state"],
            lambda saved: saved["nnunet_kd"]["adapters"],
            lambda saved: saved["nnunet_kd"]["average"],
        ):
            torch.testing.assert_close(get(content), get(self.expected), rtol=0, atol=0)
        assert (self.fold / "validation" / "summary.json").is_file()
        assert not list(self.fold.glob("*.unfinished")) and not (self.fold / "training.lock").exists()


def killed_again_and_again(workspace: Workspace, kills: int, epochs: int, reach: float, seed: int) -> list[int]:
    """Kill a training at random times and finish it; return the number of saved epochs after each kill.

    Args:
        workspace: The workspace of the training.
        kills: The number of kills.
        epochs: The number of epochs.
        reach: The longest time before a kill, as part of the time the undisturbed training took.
        seed: The seed of the times.
    """
    training = KilledTraining(workspace, epochs)
    saved = []
    for after in times_of_all_phases(kills, reach * training.seconds, seed):
        ended = training.run(after)
        assert ended.exit_code <= 0, ended.output  # killed, or finished
        training.check()
        saved.append(training.saved)
    training.finish()
    return saved
