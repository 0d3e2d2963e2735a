"""A student trained for a few iterations in both configurations and two folds, and its ONNX models, made once."""

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.commands import draw_nothing
from tests.conftest import FOLDERS, SHORT, Workspace, make_trainer


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Run the tests that share trained students in one process of several, which then trains them once."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "students" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("students"))


@pytest.fixture(scope="session")
def students(trained_workspace, tmp_path_factory) -> Workspace:
    """Students of nnUNetTrainerDCD (3d_fullres, fold 0) and nnUNetTrainerNoKD (both configurations, folds 0 and 1)."""
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
    from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD

    copy = Workspace(tmp_path_factory.mktemp("students"))
    for name in FOLDERS:
        shutil.copytree(trained_workspace.root / name, copy.root / name)
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(copy.root / name))
        patch.setattr(LocalLogger, "plot_progress_png", draw_nothing)
        patch.setattr("nnunet_kd.training.trainer.append_terms", lambda *_: None)
        plans = copy.plans("nnUNetPlans", training={**SHORT, "initial_lr": 0.03})
        distilled = make_trainer(nnUNetTrainerDCD, plans, copy)
        distilled.run_training()
        distilled.perform_actual_validation()  # nnU-Net's command does this after training
        for configuration in ("3d_fullres", "2d"):
            for fold in (0, 1):
                trainer = make_trainer(nnUNetTrainerNoKD, plans, copy, fold=fold, configuration=configuration)
                trainer.run_training()
    return copy


def results(students: Workspace, trainer: str = "NoKD", configuration: str = "3d_fullres") -> Path:
    return students.results / f"nnUNetTrainer{trainer}__nnUNetPlans__{configuration}"


@pytest.fixture(scope="session")
def programs() -> dict[Any, Any]:
    """What PyTorch has exported: network and dynamic axes -> program."""
    return {}


@pytest.fixture
def known_programs(programs, monkeypatch) -> None:
    """Let a test that is not about PyTorch's exporter, which takes seconds, use what it made of the same network."""
    _reuse(programs, monkeypatch)


def _reuse(programs: dict[Any, Any], patch: pytest.MonkeyPatch) -> None:
    import torch

    patch.setattr(torch.onnx, "export", partial(_exported, programs, torch.onnx.export))


def _exported(programs: dict[Any, Any], export: Any, network: Any, example: tuple[Any, ...], **options: Any) -> Any:
    digest = hashlib.sha256(str(network).encode())
    for weights in network.state_dict().values():
        digest.update(weights.numpy().tobytes())
    key = digest.digest(), example[0].shape, tuple(options["dynamic_shapes"][0])
    if key not in programs:
        programs[key] = export(network, example, **options)
    return programs[key]


@pytest.fixture(scope="session")
def onnx_models(students, programs, tmp_path_factory) -> dict[str, Path]:
    """The folder of the ONNX model of each configuration, with two folds each."""
    from nnunet_kd.deploy.onnx import export_onnx
    from nnunet_kd.deploy.trained import read_trained

    root = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        _reuse(programs, patch)
        for configuration in ("3d_fullres", "2d"):
            export_onnx(read_trained(results(students, configuration=configuration), ["0", "1"]), root / configuration)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def onnx_copy(onnx_models, tmp_path) -> Path:
    """A copy of the 3-D model that a test can damage."""
    return Path(shutil.copytree(onnx_models["3d_fullres"], tmp_path / "model"))
