"""``nnunet_kd doctor``: what is installed, what nnU-Net can find, whether the teacher is there and fits."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any

from nnunet_kd.reading import read_dataset_json, read_plans

_DESCRIPTION = """\
Check the installation and, with -d, one experiment. Every line says what was found; a line that begins with "no" says
what is wrong, and what mends it where that is known. Exit status 1 if there is one.

  nnunet_kd doctor
  nnunet_kd doctor -d 501 -c 3d_fullres -f 0 -tr nnUNetTrainerDCD
  nnunet_kd doctor -d 501 --cases       and read every preprocessed case: are all values numbers, all labels known?
"""

OWN_FOLD = 'Mend: set nnunet_kd.teacher.folds to "same" in the plans'
OTHER_TEACHER = "Mend: train it anew, or name another one in the plans as nnunet_kd.teacher"
PACKAGES = ("nnunetv2", "torch", "dynamic-network-architectures", "batchgenerators", "batchgeneratorsv2", "ptwt")


def add_parser(commands: Any) -> None:
    """Declare the arguments."""
    command = commands.add_parser(
        "doctor",
        help="check the installation, the plans and the teacher",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-d", metavar="ID", help="data set, as a number or a name")
    command.add_argument("-c", metavar="CONFIG", default="3d_fullres", help="configuration (default: 3d_fullres)")
    command.add_argument("-f", metavar="FOLD", default="0", help="fold of the student (default: 0)")
    command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    command.add_argument("-tr", metavar="TRAINER", default="nnUNetTrainerDCD", help="default: nnUNetTrainerDCD")
    command.add_argument("--trust", action="store_true", help="the plans may name networks of any package")
    command.add_argument("--cases", action="store_true", help="read every preprocessed case")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; returns 1 if something is wrong."""
    if arguments.f != "all" and not arguments.f.isdecimal():
        raise ValueError(f"a fold is a number or all, got {arguments.f!r}")
    checks: list[Callable[[], str]] = [_packages, _device, _paths, _trainers]
    experiment = _Checks(arguments)
    if arguments.d is not None:
        checks += [experiment.read_plans, experiment.preprocessed]
        checks += [experiment.cases] if arguments.cases else []
        checks += [experiment.find_trainer, experiment.teacher]
    wrong = 0
    for check in checks:
        try:
            print(f"ok  {check()}")
        except (ValueError, OSError, NotImplementedError, RuntimeError, ImportError) as error:
            wrong += 1
            print(f"no  {error}")
            if isinstance(error, _StopError):
                break
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            wrong += 1
            print(f"no  {_of_plans(error, experiment.path)}")
    print("all is well" if not wrong else f"{wrong} to mend")
    return 1 if wrong else 0


def _of_plans(error: Exception, path: Path) -> str:
    """What plans that were read but are none have led to."""
    from nnunet_kd.teachers.architecture import plans_errors

    try:
        with plans_errors(path):
            raise error
    except ValueError as said:
        return str(said)


class _StopError(ValueError):
    """What follows cannot be checked."""


def _packages() -> str:
    found = [f"Python {platform.python_version()}", f"nnunet_kd {version('nnunet_kd')}"]
    missing = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not installed. Mend: {quote(sys.executable)} -m pip install {' '.join(missing)}"
        )
    return ", ".join(found)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"CUDA device {torch.cuda.get_device_name()}"
    return "no CUDA device: add -device cpu to nnUNetv2_train and nnUNetv2_predict"


def _paths() -> str:
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for name in names:
        if name not in os.environ:
            raise _StopError(f"{name} is not set. Mend: export {name}=/path/to/{name}")
        if not Path(os.environ[name]).is_dir():
            raise _StopError(f"{name}={os.environ[name]} is no folder. Mend: mkdir -p {quote(os.environ[name])}")
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def _trainers() -> str:
    from nnunet_kd.discovery import VARIABLE, trainers_folder

    names = sorted(path.stem for path in Path(trainers_folder()).glob("nnUNetTrainer*.py"))
    lost = [name for name in names if not _lookup_finds(name)]
    if lost:
        raise ValueError(
            f"nnU-Net cannot find {', '.join(lost)}; {VARIABLE}={os.environ.get(VARIABLE, '')}. "
            f"Mend: export {VARIABLE}=${{{VARIABLE}:+${VARIABLE}{os.pathsep}}}{quote(trainers_folder())}"
        )
    return f"nnU-Net finds {', '.join(names)}"


def _lookup_finds(trainer: str) -> bool:
    from nnunet_kd.teachers.nnunet import find_trainer

    try:
        find_trainer(trainer)
    except ValueError:
        return False
    return True


class _Checks:
    """The checks of one student."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder = Path()
        self.plans: dict[str, Any] = {}
        self.trainer: Any = None

    @property
    def path(self) -> Path:
        """Of the plans."""
        return self.folder / f"{self.arguments.p}.json"

    def read_plans(self) -> str:
        from nnunet_kd.cli.dataset_folder import no_plans, preprocessed_folder
        from nnunet_kd.settings import read_settings
        from nnunet_kd.teachers.architecture import check_networks
        from nnunet_kd.teachers.checkpoint import TRUST_MODEL

        arguments = self.arguments
        try:
            self.folder = preprocessed_folder(arguments.d)
        except ValueError as error:
            raise _StopError(f"{error}. Mend: give the right one with -d, by its name") from error
        path = self.path
        if not path.is_file():
            raise _StopError(no_plans(path))
        try:
            self.plans = read_plans(path)
            read_settings(self.plans)
        except ValueError as error:
            raise _StopError(f"{path}: {error} (Mend: edit that file)") from error
        if self.plans["plans_name"] != arguments.p:
            raise _StopError(f"{path} calls itself {self.plans['plans_name']}. Mend: set plans_name to {arguments.p}")
        if arguments.c not in self.plans["configurations"]:
            have = ", ".join(self.plans["configurations"])
            raise _StopError(f"{path} has no configuration {arguments.c}. Mend: choose one of {have} with -c")
        if not arguments.trust:
            try:
                check_networks(self.plans, path, TRUST_MODEL, arguments.c)
            except ValueError as error:
                raise _StopError(str(error)) from error
        return f"plans {path}"

    def preprocessed(self) -> str:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_kd.cli.dataset_folder import dataset_number

        identifier = PlansManager(self.plans).get_configuration(self.arguments.c).data_identifier
        cases = len(list((self.folder / identifier).glob("*.pkl")))
        if not cases:
            raise ValueError(
                f"nothing is preprocessed in {self.folder / identifier}. "
                f"Mend: nnUNetv2_preprocess -d {dataset_number(self.folder)} -plans_name {self.arguments.p} "
                f"-c {self.arguments.c}"
            )
        if not (self.folder / "dataset_fingerprint.json").is_file():  # nnU-Net copies it to the results
            raise ValueError(
                f"there is no {self.folder / 'dataset_fingerprint.json'}, without which no training begins. "
                f"Mend: nnUNetv2_extract_fingerprint -d {dataset_number(self.folder)}"
            )
        listed = read_dataset_json(self.folder / "dataset.json").get("numTraining", cases)
        beside = "" if listed == cases else f", dataset.json says {listed}"
        return f"{cases} preprocessed cases in {self.folder / identifier}{beside}"

    def cases(self) -> str:
        import torch
        from tqdm import tqdm

        from nnunet_kd.teachers.nnunet import Experiment
        from nnunet_kd.teachers.preprocessed import PreprocessedCases
        from nnunet_kd.training.faults import BatchCheck

        dataset_json = read_dataset_json(self.folder / "dataset.json")
        cases = PreprocessedCases(self.folder, Experiment(self.plans, self.arguments.c, dataset_json))
        check = BatchCheck(cases.channels, cases.labels, raw=True)
        faults: list[str | None] = []
        for case in tqdm(cases.identifiers, unit="case", leave=False):
            try:
                images, labels = (torch.from_numpy(array) for array in cases.load(case))
            except (RuntimeError, ValueError, OSError) as error:
                faults.append(f"{case} cannot be read ({error})")
                continue
            batch = {"data": images[None], "target": labels[None, None].clamp(min=0), "keys": [case]}  # -1: outside
            faults.append(check(batch))
        found = [fault for fault in faults if fault is not None]
        if found:
            raise ValueError("; ".join(found))
        return f"all values of {len(cases.identifiers)} cases are numbers, all labels known"

    def find_trainer(self) -> str:
        from nnunet_kd.teachers.nnunet import find_trainer

        try:
            self.trainer = find_trainer(self.arguments.tr)
        except ValueError as error:
            raise _StopError(f"{error}. Mend: choose another with -tr") from None
        return f"trainer {self.arguments.tr}"

    def teacher(self) -> str:
        from nnunet_kd.teachers.nnunet import Experiment
        from nnunet_kd.training.leakage import soft_label_leakage, soft_label_teachers, unchecked
        from nnunet_kd.training.preparation import attach_soft_labels, attach_teacher, prepare, start_from_teacher
        from nnunet_kd.training.results import check_results, results_of
        from nnunet_kd.training.trainer import DistillationTrainer

        if not issubclass(self.trainer, DistillationTrainer):
            return f"{self.arguments.tr} is not a trainer of this package: no teacher to check"
        dataset_json = read_dataset_json(self.folder / "dataset.json")
        fold = self.arguments.f if self.arguments.f == "all" else int(self.arguments.f)  # as run has checked
        preparation = prepare(self.trainer, Experiment(self.plans, self.arguments.c, dataset_json), fold)
        results = results_of(self.arguments.tr, preparation.student)
        if results is not None:
            check_results(results, preparation.student)
        store = attach_soft_labels(preparation)
        if store is not None and (leak := soft_label_leakage(preparation, store)) is not None:
            own = f"Mend: nnunet_kd soft-labels --teacher -f {fold} --name NAME, and store: NAME"
            raise ValueError(f"{leak} {OTHER_TEACHER if store.leakage(fold) is None else own}")
        weights = getattr(preparation.method, "checkpoint", None)
        if weights is not None and not Path(weights).is_file():
            raise ValueError(
                f"there are no weights of SAM in {weights}. Mend: name them in the plans as nnunet_kd.method.checkpoint"
            )
        stored = "" if store is None else f", the soft labels '{store.name}' are there and fit"
        mend = OTHER_TEACHER if preparation.leakage is None else OWN_FOLD
        files = [] if store is None else soft_label_teachers(preparation, store)
        if preparation.starts_from_teacher:
            start = start_from_teacher(self.trainer, preparation)
            if start.leakage is not None:
                raise ValueError(f"{start.leakage} {mend}")
            files += start.files
        if not preparation.needs_teacher:
            taught = "starts from its teacher" if preparation.starts_from_teacher else "needs no teacher"
            unknown = unchecked(preparation, files)
            return f"{self.arguments.tr} {taught}{stored}{'' if unknown is None else f'; {unknown}'}"
        with contextlib.redirect_stdout(io.StringIO()):
            attached = attach_teacher(self.trainer, preparation)
        if attached.leakage is not None:
            raise ValueError(f"{attached.leakage} {mend}")
        found = "the teacher is there and fits"
        if attached.teacher.stages is not None and attached.matched_stages:
            widths = list(attached.teacher.stages.widths)
            found += f": {len(attached.matched_stages)} stages shared, widths {widths}"
        unknown = unchecked(preparation, [*files, *attached.files])
        return found if unknown is None else f"{found}; {unknown}"
