"""The checks of the installation: packages, device, processes, folders and trainers."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote

from nnunet_kd.cli.doctor.stop import StopError
from nnunet_kd.storage.processes import process_limits, usable_cores

PACKAGES = ("nnunetv2", "torch", "dynamic-network-architectures", "batchgenerators", "batchgeneratorsv2", "PyWavelets")


def packages() -> str:
    """Check that the required packages are installed."""
    found = [f"Python {platform.python_version()}", f"nnunet_kd {version('nnunet_kd')}"]
    missing = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise ValueError(
            f"missing packages: {', '.join(missing)}. Fix: {quote(sys.executable)} -m pip install {' '.join(missing)}"
        )
    return ", ".join(found)


def device() -> str:
    """Report the device that networks will run on."""
    import torch

    if torch.cuda.is_available():
        return f"CUDA device {torch.cuda.get_device_name()}"
    return "no CUDA device: add -device cpu to nnUNetv2_train and nnUNetv2_predict"


def processes() -> str:
    """Report how many processes nnU-Net's commands should start; those that we start are told."""
    cores, limits = usable_cores(), process_limits()
    count = f"{cores} CPU core{'s' if cores > 1 else ''}"
    if not limits:
        return count
    settings = " ".join(f"{name}={value}" for name, value in limits.items())
    return f"{count}, on which nnU-Net's commands are faster with fewer processes: export {settings}"


def folders() -> str:
    """Check that nnU-Net's three folders exist and that the results folder, where trainings write, is writable."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for name in names:
        if name not in os.environ:
            raise StopError(f"{name} is not set. Fix: export {name}=/path/to/{name}")
        if not Path(os.environ[name]).is_dir():
            raise StopError(f"{name}={os.environ[name]} is not a folder. Fix: mkdir -p {quote(os.environ[name])}")
    read_only = [name for name in names if not may_write(Path(os.environ[name]))]
    if (results := names[-1]) in read_only:
        raise ValueError(
            f"{results}={os.environ[results]} cannot be written to: it is read-only or belongs to another user. "
            f"Fix: export {results}=/path/to/a/folder/of/yours"
        )
    return ", ".join(f"{name}={os.environ[name]}" + " (read-only)" * (name in read_only) for name in names)


def may_write(folder: Path) -> bool:
    """Return whether files can be created in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


def trainers() -> str:
    """Check that nnU-Net finds all trainers of this package."""
    from nnunet_kd.discovery import VARIABLE, trainers_folder

    names = sorted(path.stem for path in Path(trainers_folder()).glob("nnUNetTrainer*.py"))
    lost = [name for name in names if not _lookup_finds(name)]
    if lost:
        raise ValueError(
            f"nnU-Net cannot find {', '.join(lost)}; {VARIABLE}={os.environ.get(VARIABLE, '')}. "
            f"Fix: export {VARIABLE}=${{{VARIABLE}:+${VARIABLE}{os.pathsep}}}{quote(trainers_folder())}"
        )
    return f"nnU-Net finds {', '.join(names)}"


def _lookup_finds(trainer: str) -> bool:
    from nnunet_kd.nnunet.experiment import find_trainer

    try:
        find_trainer(trainer)
    except ValueError:
        return False
    return True
