"""The arguments of commands that start several jobs at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_kd.study.launchers import Launcher, LocalLauncher
    from nnunet_kd.study.slurm import SlurmLauncher

_OF_SLURM = ("slurm_partition", "slurm_time", "slurm_gpus", "slurm_cpus", "slurm_additional")


def add_launcher(command: argparse.ArgumentParser, what: str) -> Any:
    """Add the arguments of a launcher to a command, and return their group.

    Args:
        command: The parser of the command.
        what: What the launcher starts, for ``--help``.
    """
    group = command.add_argument_group(f"{what} in several jobs, by submitit")
    group.add_argument(
        "--launcher",
        metavar="WHERE",
        choices=("local", "slurm", "none"),
        help="local: several at once on this machine; slurm: as Slurm jobs (default: one after the other)",
    )
    group.add_argument(
        "--devices", metavar="GPU", nargs="+", help="with local: a GPU for each job at once (default: all GPUs)"
    )
    group.add_argument(
        "--jobs", metavar="N", type=int, help="jobs at once: on the CPU with local (default: 2), or of Slurm"
    )
    group.add_argument("--slurm-partition", metavar="NAME", help="partition (default: that of the cluster)")
    group.add_argument(
        "--slurm-time",
        metavar="TIME",
        help="time limit of a job, as Slurm writes it (default: 24:00:00); a training that needs more resumes",
    )
    group.add_argument("--slurm-gpus", metavar="N", type=int, help="GPUs of a job (default: 1, with -device cpu 0)")
    group.add_argument("--slurm-cpus", metavar="N", type=int, help="cores of a job (default: that of the cluster)")
    group.add_argument(
        "--slurm-additional",
        metavar="KEY=VALUE",
        nargs="+",
        help="other options of sbatch, such as mem=48G account=lab",
    )
    return group


def check_launcher(arguments: argparse.Namespace) -> None:
    """Check that the arguments of the launcher fit each other.

    Raises:
        ValueError: If they do not.
    """
    if arguments.launcher == "none":
        return  # a job has added it to the words that launched it
    slurm = arguments.launcher == "slurm"
    given = [name for name in ("devices", "jobs", *_OF_SLURM) if getattr(arguments, name) is not None]
    if given and arguments.launcher is None:
        raise ValueError(f"--{given[0].replace('_', '-')} needs --launcher")
    if set(given) & set(_OF_SLURM) and not slurm:
        raise ValueError(f"--{given[-1].replace('_', '-')} belongs to --launcher slurm")
    if slurm and arguments.devices is not None:
        raise ValueError("--devices belongs to --launcher local: Slurm chooses the GPUs of its jobs")
    if arguments.devices is not None and arguments.jobs is not None:
        raise ValueError("give --devices or --jobs: on GPUs there is one job for each device")
    if arguments.devices is not None and _device(arguments) == "cpu":
        raise ValueError("--devices names GPUs, but -device is cpu: give --jobs")
    if arguments.devices is not None and len(set(arguments.devices)) < len(arguments.devices):
        raise ValueError(f"--devices has an entry twice: {' '.join(arguments.devices)}")
    for name in ("jobs", "slurm_cpus"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.slurm_gpus is not None and arguments.slurm_gpus < 0:
        raise ValueError(f"--slurm-gpus must be at least 0, got {arguments.slurm_gpus}")


def device_of(arguments: argparse.Namespace) -> str:
    """Return the device of the jobs, which may run where there are other devices than here."""
    from nnunet_kd.cli.device import default_device

    given = _device(arguments)
    if given is not None:
        return given
    if arguments.launcher == "slurm":
        return "cpu" if arguments.slurm_gpus == 0 else "cuda"
    return "cuda" if arguments.devices is not None else default_device()


def _device(arguments: argparse.Namespace) -> str | None:
    """Return what ``-device`` says; a command without it works on the CPU."""
    given: str | None = getattr(arguments, "device", "cpu")
    return given


def launch(arguments: argparse.Namespace, target: Path, words: Sequence[str], again: str) -> int:
    """Send the parts of the command as jobs, and wait for them; return the exit status.

    Args:
        arguments: The arguments of the command.
        target: The folder that the command writes.
        words: The command.
        again: The option with which it goes on after an interruption.

    Raises:
        ValueError: If the number of parts is not given.
        RuntimeError: If a part fails.
    """
    from nnunet_kd.study.parts import jobs_folder, launch_parts

    out = jobs_folder(target)
    if arguments.part_id:
        raise ValueError("--launcher sends all parts: leave out -part_id")
    parts = arguments.num_parts if arguments.num_parts > 1 else arguments.jobs
    launcher: Launcher
    if arguments.launcher == "local":
        launcher = local = local_launcher(arguments, out)
        parts = parts or local.room(0)
    else:
        launcher = slurm_launcher(arguments, out)
    if parts is None:
        raise ValueError("--launcher slurm sends -num_parts jobs: say how many")
    launch_parts(out, words, (again,), parts, launcher)
    return 0


def launcher_words(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the arguments of the launcher as words, for another command that takes them."""
    words: list[str] = []
    for name in ("launcher", "devices", "jobs", *_OF_SLURM):
        value = getattr(arguments, name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return tuple(words)


def local_launcher(arguments: argparse.Namespace, out: Path) -> LocalLauncher:
    """Return the launcher on this machine.

    Args:
        arguments: The arguments.
        out: The folder of logs and jobs.

    Raises:
        ImportError: If submitit is not installed.
    """
    from nnunet_kd.study.launchers import LocalLauncher

    devices = arguments.devices
    if devices is None and arguments.jobs is None and device_of(arguments) == "cuda":
        import torch

        devices = [str(number) for number in range(torch.cuda.device_count())]
    return LocalLauncher(out, devices or (), arguments.jobs or 2)


def slurm_launcher(arguments: argparse.Namespace, out: Path) -> SlurmLauncher:
    """Return the launcher on a cluster.

    Args:
        arguments: The arguments.
        out: The folder of logs and jobs, which all nodes see.

    Raises:
        ValueError: If an argument is wrong.
        ImportError: If submitit is not installed.
        RuntimeError: If Slurm is not installed.
    """
    from nnunet_kd.study.slurm import SlurmLauncher, SlurmOptions, minutes_of

    additional = {}
    for word in arguments.slurm_additional or ():
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ValueError(f"--slurm-additional takes KEY=VALUE, got {word}")
        additional[key.lstrip("-")] = value
    gpus = arguments.slurm_gpus
    options = SlurmOptions(
        partition=arguments.slurm_partition,
        minutes=minutes_of(arguments.slurm_time or "24:00:00"),
        gpus=(0 if device_of(arguments) == "cpu" else 1) if gpus is None else gpus,
        cpus=arguments.slurm_cpus,
        at_once=arguments.jobs or 256,
        additional=additional,
    )
    return SlurmLauncher(out, options)
