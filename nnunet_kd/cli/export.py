"""``nnunet_kd export`` and ``nnunet_kd install``: share a trained student and install a shared one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from nnunet_kd.storage.writing import check_writable

if TYPE_CHECKING:
    from nnunet_kd.deploy.trained import TrainedModel

_EXPORT = """\
Export a trained student, either for stock nnU-Net or as ONNX.

  nnunet_kd export nnunet -d 501 -tr nnUNetTrainerKD -o student.zip
      write a model of stock nnU-Net. Another machine needs only nnU-Net, not this package, to install it with
      nnUNetv2_install_pretrained_model_from_zip student.zip and to predict with nnUNetv2_predict. The file holds the
      weights, the student's plans and a record of its origin (provenance.json), but no state to resume training from.
      The method becomes part of the plans' name, so that the installation does not replace the teacher.
  nnunet_kd export onnx -d 501 -tr nnUNetTrainerKD -o student_onnx
      write a folder for nnunet_kd predict, which runs on a CPU with OpenVINO or ONNX Runtime
      (pip install 'nnunet_kd[onnx,openvino]'). A machine that only predicts needs nnunet_kd_runtime alone, without
      PyTorch and nnU-Net
  nnunet_kd export onnx -m model.zip -o model_onnx
      the same for any model of stock nnU-Net: a zip file by nnUNetv2_export_model_to_zip, a results folder, or its name
      in nnUNet_results; by default, the logits of all its folds are averaged
  nnunet_kd export onnx ... --precision int8 --images imagesTs --labels labelsTs
      store smaller weights and measure on these cases how much Dice they cost. int8 is calibrated on training images:
      those in nnUNet_raw, or a folder that --calibration names. OpenVINO computes int8 faster than fp32, and ONNX
      Runtime reads it but gains nothing except size
"""

_INSTALL = """\
Install a model from a zip file that this package or nnU-Net exported. Like nnUNetv2_install_pretrained_model_from_zip,
it unpacks the file into nnUNet_results, but it never replaces an installed model and never writes elsewhere. It also
refuses models whose code nnUNetv2_predict would run: checkpoints that hold more than weights and numbers, and plans
that name networks from packages other than PyTorch, nnU-Net and this one. Use --trust to install them all the same.

  nnunet_kd install student.zip
      unpack student.zip into nnUNet_results and print the folder of the model
"""


_FOLDS = ["0"]  # if -f is left out, and with -m every fold that the model has

_TRUST = "allow any code in the model's files to run: classes in its checkpoints, networks that its plans name"


def add_parser(commands: Any) -> None:
    """Add the commands ``export`` and ``install`` and their arguments."""
    export = commands.add_parser(
        "export",
        help="export a trained student for stock nnU-Net or as ONNX",
        description=_EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument(
        "kind", choices=("nnunet", "onnx"), help="a model of stock nnU-Net (nnunet) or an ONNX model (onnx)"
    )
    origin = export.add_mutually_exclusive_group(required=True)
    origin.add_argument("-d", metavar="ID", help="number or name of the data set of the student")
    origin.add_argument("-m", metavar="MODEL", help="onnx only: zip file, results folder or name of any trained model")
    export.add_argument(
        "--model-config", metavar="CONFIG", help="with -m: configuration to export of a model with several"
    )
    export.add_argument(
        "-tr", metavar="TRAINER", default="nnUNetTrainerKD", help="trainer of the student (default: nnUNetTrainerKD)"
    )
    export.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="name of the student's plans (default: nnUNetPlans)"
    )
    export.add_argument(
        "-c", metavar="CONFIG", default="3d_fullres", help="nnU-Net configuration (default: 3d_fullres)"
    )
    export.add_argument(
        "-f",
        metavar="FOLD",
        nargs="+",
        default=_FOLDS,
        help="folds to export, numbers or all (default: 0; with -m, all it has)",
    )
    export.add_argument(
        "-chk",
        metavar="FILE",
        default="checkpoint_final.pth",
        help="checkpoint to export (default: checkpoint_final.pth)",
    )
    export.add_argument(
        "-o", metavar="PATH", type=Path, required=True, help="zip file (nnunet) or folder (onnx) to write"
    )
    export.add_argument(
        "--licence", metavar="TEXT", help="licence of the model, noted in its provenance (default: none)"
    )
    export.add_argument(
        "--plans-name", metavar="NAME", help="nnunet only: name of the exported plans (default: PLANS_METHOD)"
    )
    export.add_argument("--precision", metavar="KIND", help="onnx only: fp32, fp16 or int8 weights (default: fp32)")
    export.add_argument(
        "--calibration",
        metavar="DIR",
        type=Path,
        help="int8 only: training images that give the ranges of its layers (default: imagesTr in nnUNet_raw)",
    )
    export.add_argument("--images", metavar="DIR", type=Path, help="onnx only: images of cases to measure Dice on")
    export.add_argument("--labels", metavar="DIR", type=Path, help="onnx only: reference segmentations of these cases")
    export.add_argument("--trust", action="store_true", help=_TRUST)
    export.set_defaults(run=run_export)

    install = commands.add_parser(
        "install",
        help="install an exported model into nnUNet_results",
        description=_INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    install.add_argument("zip", metavar="ZIP", type=Path, help="zip file of the model")
    install.add_argument("--trust", action="store_true", help=_TRUST)
    install.set_defaults(run=run_install)


def run_export(arguments: argparse.Namespace) -> int:
    """Export the student; return the exit status."""
    from nnunet_kd.deploy.trained import read_trained
    from nnunet_kd.storage.overwriting import check_kept

    _check(arguments)
    with _origin(arguments) as (folder, folds):
        given = [] if arguments.m is None else [Path(arguments.m)]
        named = (arguments.images, arguments.labels, arguments.calibration)
        inputs = (*given, folder, *(folder / f"fold_{fold}" for fold in folds), *named)
        check_kept(filter(None, inputs), [arguments.o], "Give another path with -o")
        return _export(read_trained(folder, folds, arguments.chk, arguments.trust), arguments)


@contextmanager
def _origin(arguments: argparse.Namespace) -> Iterator[tuple[Path, list[str]]]:
    """Yield the results folder and the folds that -d or -m mean; a zip file is unpacked as long as this lasts."""
    if arguments.d is not None:
        from nnunetv2.paths import nnUNet_results
        from nnunetv2.utilities.file_path_utilities import get_output_folder

        from nnunet_kd.cli.dataset_folder import dataset_name, required

        required(nnUNet_results)
        folder = Path(get_output_folder(dataset_name(arguments.d), arguments.tr, arguments.p, arguments.c))
        yield folder, list(dict.fromkeys(arguments.f))
        return
    from nnunet_kd.teachers.models import opened_model

    scratch = arguments.o.with_name(f"{arguments.o.name}.unpacked")
    folds = None if arguments.f is _FOLDS else arguments.f
    with opened_model(arguments.m, scratch, folds, arguments.model_config, arguments.chk, arguments.trust) as model:
        checkpoints = [fold.checkpoint for fold in model.folds]
        yield checkpoints[0].parent.parent, [path.parent.name.removeprefix("fold_") for path in checkpoints]


def _export(model: TrainedModel, arguments: argparse.Namespace) -> int:
    if arguments.kind == "nnunet":
        from nnunet_kd.deploy.stock import export_stock

        installed = export_stock(model, arguments.o, arguments.plans_name, arguments.licence)
        trainer, plans, configuration = installed.split("/")[1].split("__")
        print(f"wrote {arguments.o} ({arguments.o.stat().st_size / 2**20:.1f} MiB)")
        print(f"there: nnUNetv2_install_pretrained_model_from_zip {quote(arguments.o.name)}")
        before = "" if model.previous_stage is None else " -prev_stage_predictions BEFORE"
        print(
            f"then:  nnUNetv2_predict -d {model.dataset} -c {configuration} -p {plans} -tr {trainer} "
            f"-f {' '.join(model.weights)} -i IN -o OUT{before}"
        )
        if before:
            print(
                f"       BEFORE: segmentations of IN by a model of {model.previous_stage}, which is exported by itself"
            )
        return 0

    from nnunet_kd.deploy.onnx import export_onnx

    measure = None
    if arguments.images is not None:
        from nnunet_kd.deploy.dice import mean_dice

        measure = lambda made: mean_dice(made, arguments.images, arguments.labels)  # noqa: E731
    precision = arguments.precision or "fp32"
    calibration = arguments.calibration
    if precision == "int8" and calibration is None:
        calibration = _raw_images(model.dataset)
    made = export_onnx(model, arguments.o, precision, arguments.licence, measure, print, calibration)
    size = sum(file.stat().st_size for file in arguments.o.glob("*.onnx")) / 2**20
    axes = "the patch's size only" if made.multiples is None else f"any multiple of {made.multiples} voxels"
    print(f"wrote {arguments.o} ({size:.1f} MiB of networks, {made.precision}, opset {made.opset})")
    print(f"any batch, {axes}; logits differ from PyTorch's by at most {made.difference:.1e} of the largest")
    if made.dice is not None:
        print("mean Dice: " + ", ".join(f"{kind} {dice:.4f}" for kind, dice in made.dice.items()))
    print(f"then: nnunet_kd predict -m {quote(str(arguments.o))} -i IN -o OUT")
    return 0


def _raw_images(dataset: str) -> Path | None:
    """Return the training images of a data set, if nnU-Net's folders are set and have them."""
    from nnunetv2.paths import nnUNet_raw

    images = Path(nnUNet_raw.require()) / dataset / "imagesTr" if nnUNet_raw.is_set() else None
    return images if images is not None and images.is_dir() else None


def _check(arguments: argparse.Namespace) -> None:
    of_onnx = {
        "-m": arguments.m,
        "--precision": arguments.precision,
        "--calibration": arguments.calibration,
        "--images": arguments.images,
        "--labels": arguments.labels,
    }
    if arguments.model_config is not None and arguments.m is None:
        raise ValueError("--model-config belongs to -m")
    if arguments.kind == "nnunet":
        for option, value in of_onnx.items():
            if value is not None:
                raise ValueError(f"{option} belongs to export onnx")
        if arguments.o.suffix != ".zip":
            raise ValueError(f"-o must be a .zip file, got {arguments.o}")
    elif arguments.plans_name is not None:
        raise ValueError("--plans-name belongs to export nnunet")
    if arguments.calibration is not None and arguments.precision != "int8":
        raise ValueError("--calibration belongs to --precision int8")
    if (arguments.images is None) != (arguments.labels is None):
        raise ValueError("--images and --labels belong together")
    for folder in (arguments.images, arguments.labels, arguments.calibration):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    if not arguments.o.is_dir():
        check_writable(arguments.o)
    for fold in arguments.f:
        if fold != "all" and not fold.isdecimal():
            raise ValueError(f"a fold is a number or all, got {fold!r}")


def run_install(arguments: argparse.Namespace) -> int:
    """Install the models in the zip file; return the exit status."""
    from nnunetv2.paths import nnUNet_results

    from nnunet_kd.cli.dataset_folder import required
    from nnunet_kd.deploy.stock import install_stock

    results = required(nnUNet_results)
    for model in install_stock(arguments.zip, results, arguments.trust):
        print(f"installed {results / model}")
        dataset, _, name = model.partition("/")
        trainer, plans, configuration = name.split("__")
        folds = sorted(path.name.removeprefix("fold_") for path in (results / model).glob("fold_*"))
        words = ["-d", dataset, "-c", configuration, "-p", plans, "-tr", trainer, "-f", *folds]
        print(
            f"then: nnUNetv2_predict {' '.join(map(quote, words))} -i IN -o OUT"
        )  # names in the file are a stranger's
    return 0
