"""Fixtures: a tiny data set, planned and preprocessed by nnU-Net, and a stock teacher trained for two iterations.

This file and ``students.py``, which pytest loads when it starts, import neither torch nor nnU-Net at the top: with
``-n 2``, a third process hands out the tests, and would import both for ten seconds before the other two start.
"""

import json
import multiprocessing.context
import os

# nnU-Net reads these when it is imported.
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["nnUNet_compile"] = "f"

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.commands import (
    draw_nothing,
    forked_commands,  # noqa: F401  a fixture
    plan_and_preprocess,
    run_command,
)
from tests.killing import PreloadedContext, list_files_in_threads, preloaded

pytest_plugins = ["tests.students"]  # fixtures of several folders


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Begin with slow tests, so that short ones are left for the process that finishes early."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def pytest_terminal_summary(terminalreporter):
    """Report how long slow and other tests took, which one run of both does not tell."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "when")]
    seconds = {slow: sum(one.duration for one in reports if ("slow" in one.keywords) is slow) for slow in (True, False)}
    terminalreporter.write_line(f"slow tests: {seconds[True]:.0f} s, others: {seconds[False]:.0f} s, of all processes")


def pytest_collection_finish(session):
    """Refuse to run if pytest-xdist ignores the groups, since every worker would then make all shared fixtures."""
    import torch

    torch.set_num_threads(1)  # the tensors are tiny, and pytest may run several processes
    grouped = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and not all("@" in nodeid for nodeid in grouped):
        raise pytest.UsageError("pytest-xdist ignores groups with this version of pytest: install what pyproject asks")


DATASET = "Dataset598_TinyHeads"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Skip nnU-Net's plot after every epoch, which takes longer than the epochs here, unless a test has ``draws``."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    if "draws" not in request.keywords:
        monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)


@pytest.fixture(autouse=True, scope="session")
def preloaded_processes():
    """Fork the processes that nnU-Net and this package spawn from one that has imported nnU-Net, if forks exist."""
    preloaded()
    list_files_in_threads()
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "fork"):
            patch.setitem(multiprocessing.context._concrete_contexts, "spawn", PreloadedContext())
        yield


@dataclass
class Workspace:
    """nnU-Net's three folders with one data set and, in some workspaces, a teacher."""

    root: Path
    dataset: str = DATASET

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        return self.root / "nnUNet_results" / self.dataset

    @property
    def teacher(self) -> Path:
        return self.results / "nnUNetTrainer__nnUNetPlans__3d_fullres"

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.preprocessed / "dataset.json").read_text())

    def plans(self, name: str = "nnUNetPlans", **block) -> dict:
        """Return the teacher's plans with another name and an ``nnunet_kd`` block, and write them to their place."""
        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())
        plans["plans_name"] = name
        if block:
            plans["nnunet_kd"] = block
        (self.preprocessed / f"{name}.json").write_text(json.dumps(plans))
        return plans

    def environment(self) -> dict:
        """Return the variables of a command that is started in this workspace."""
        folders = {name: str(self.root / name) for name in FOLDERS}
        return {**os.environ, **folders, "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}

    def command(self, *words: str, **changes: str) -> str:
        """Run an installed command in a forked process, require that it succeeds, and return what it printed."""
        return _output(run_command(words, {**self.environment(), **changes}))

    def process(self, *words: str, **changes: str) -> str:
        """Run an installed command in a new process as a user does, require that it succeeds, and return its output."""
        program = shutil.which(words[0], path=str(Path(sys.executable).parent)) or words[0]
        environment = {**self.environment(), **changes}
        return _output(
            subprocess.run([program, *words[1:]], capture_output=True, text=True, env=environment, timeout=600)
        )


def _output(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def make_trainer(kind: type, plans: dict, workspace: Workspace, fold=0, configuration="3d_fullres", resume=False):
    """Construct a trainer as nnU-Net's command does."""
    import torch

    return kind(
        {**plans, "continue_training": resume}, configuration, fold, workspace.dataset_json, torch.device("cpu")
    )


def note_validated(fold: Path, cases: Sequence[str]) -> None:
    """Write the files that nnU-Net leaves when it has validated a model on these cases."""
    (fold / "validation").mkdir(exist_ok=True)
    listed = [{"prediction_file": str(fold / "validation" / f"{case}.nii.gz")} for case in cases]
    (fold / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": listed}))


def stop_within(trainer, steps: int) -> None:
    """Train for the given number of steps, and break off in the next one, as a kill would."""
    left = iter(range(steps))
    step = trainer.train_step

    def stopping(batch):
        next(left)
        return step(batch)

    trainer.train_step = stopping
    with pytest.raises((StopIteration, RuntimeError)):
        trainer.run_training()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a disk of a given size in bytes (tmpfs); skip if mounting is not allowed."""
    mounted = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk_{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def read_only(small_disk) -> Callable[[Path], Path]:
    """Return a function that copies a folder to a disk nobody can write to, not even root."""

    def copy(folder: Path) -> Path:
        disk = small_disk(2**26)
        shutil.copytree(folder, disk / folder.name)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return disk / folder.name

    return copy


@pytest.fixture
def sam(tmp_path, monkeypatch):
    """File with the weights of a tiny SAM that segment_anything knows as 'tiny'."""
    import segment_anything
    import torch

    from tests.small_networks import tiny_sam

    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", partial(tiny_sam, image_size=128))
    torch.manual_seed(0)
    path = tmp_path / "sam.pth"
    torch.save(tiny_sam(image_size=128).state_dict(), path)
    return path


SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "save_every": 1}


@pytest.fixture(scope="session")
def trained_workspace(tmp_path_factory) -> Workspace:
    """Return the workspace with a teacher, made once; tests get copies of it."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_kd.datasets.synthetic import make_dataset

    workspace = Workspace(tmp_path_factory.mktemp("nnunet"))
    for name in FOLDERS:
        (workspace.root / name).mkdir()
        os.environ[name] = str(workspace.root / name)
    make_dataset(workspace.raw, training=6, test=1, shape=(12, 22, 18))
    plan_and_preprocess(598, "3d_fullres", "2d")
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    for configuration in plans["configurations"].values():
        configuration["batch_size"] = 2
    (workspace.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLogger, "plot_progress_png", draw_nothing)
        for configuration in ("3d_fullres", "2d"):
            trainer = make_trainer(nnUNetTrainer, workspace.plans(), workspace, configuration=configuration)
            trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1
            trainer.num_iterations_per_epoch = 2
            trainer.run_training()
    return workspace


@pytest.fixture
def workspace(trained_workspace, tmp_path, monkeypatch) -> Workspace:
    """Return a copy that a test can change; the preprocessed arrays are linked."""
    return copy_of(trained_workspace, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def preprocessed_modalities(tmp_path_factory) -> Workspace:
    """Return the workspace of four modalities, made once; tests get copies of it."""
    from tests.modalities import make_modalities

    return _preprocessed_slices(tmp_path_factory, "Dataset596_FourModalities", make_modalities, 10, 4)


@pytest.fixture
def modalities(preprocessed_modalities, tmp_path, monkeypatch) -> Workspace:
    """Return a copy of the data set of four modalities, which has no teacher."""
    return copy_of(preprocessed_modalities, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def preprocessed_pictures(tmp_path_factory) -> Workspace:
    """Return the workspace of RGB pictures, made once; tests get copies of it."""
    from tests.pictures import make_pictures

    return _preprocessed_slices(tmp_path_factory, "Dataset597_TinyPictures", make_pictures, 8, 2)


@pytest.fixture
def pictures(preprocessed_pictures, tmp_path, monkeypatch) -> Workspace:
    """Return a copy of the data set of RGB pictures, which has no teacher."""
    return copy_of(preprocessed_pictures, tmp_path, monkeypatch)


def _preprocessed_slices(factory, dataset: str, make, training: int, test: int) -> Workspace:
    workspace = Workspace(factory.mktemp("slices"), dataset)
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            (workspace.root / name).mkdir()
            patch.setenv(name, str(workspace.root / name))
        make(workspace.raw, training, test)
        plan_and_preprocess(int(dataset[7:10]), "2d")
    return workspace


def copy_of(workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Copy a workspace into a folder, and let nnU-Net use the copy; the preprocessed arrays are linked."""
    for name in FOLDERS:
        shutil.copytree(workspace.root / name, folder / name, copy_function=_link_arrays)
        monkeypatch.setenv(name, str(folder / name))
    return Workspace(folder, workspace.dataset)


def _link_arrays(source: str, target: str) -> None:
    if source.endswith((".b2nd", ".pkl", ".nii.gz")):
        os.link(source, target)
    else:
        shutil.copy2(source, target)
