"""The command that segments images with an exported model: ``nnunet_kd predict`` and ``nnunet_kd_predict``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .files.image_names import strangers
from .files.integrity import check_name, is_whole
from .files.overwriting import check_kept
from .files.writing import check_writable, is_full, write_whole

if TYPE_CHECKING:
    from .cases import PredictionCase
    from .model import Model

_DESCRIPTION = """\
Segment images on the CPU with a model from nnunet_kd export onnx. Image names, shared options and written files are
those of nnUNetv2_predict, but neither PyTorch nor nnU-Net is needed, and memory is bounded: logits are resampled and
reduced to labels plane by plane.

  {command} -m student_onnx -i imagesTs -o segmentations
      segment every case in the folder imagesTs
  {command} -m student_onnx -i case_0000.nii.gz -o case.nii.gz --disable_tta
      segment one case without mirroring
  {command} ... --continue_prediction
      resume after an interruption: finished cases are skipped
  {command} ... -num_parts 2 -part_id 0
      segment the first half of the cases; run -part_id 1 on another machine
  {command} -m student_onnx -i DICOM_FOLDER -o segmentation.dcm
      segment a DICOM series and write DICOM-SEG (pip install '{package}[dicom]'); -o case.nii.gz writes NIfTI

You can write segmentations beside the images, such as case.nii.gz beside case_0000.nii.gz. No input is ever
overwritten.

The engine is OpenVINO if it is installed, otherwise ONNX Runtime (pip install '{package}[onnx,openvino]').
"""


def description(command: str) -> str:
    """Return the text of ``--help``."""
    return _DESCRIPTION.format(command=command, package=__name__.partition(".")[0])


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    command.add_argument("-m", metavar="DIR", type=Path, required=True, help="folder of the exported model")
    command.add_argument(
        "-i", metavar="PATH", type=Path, required=True, help="folder of images, one image, or DICOM folder"
    )
    command.add_argument(
        "-o", metavar="PATH", type=Path, required=True, help="folder for the segmentations, or one file"
    )
    command.add_argument(
        "--disable_tta", action="store_true", help="predict without mirroring (faster, slightly less accurate)"
    )
    command.add_argument(
        "-step_size", metavar="S", type=float, default=0.5, help="step of the sliding window, in patches (default: 0.5)"
    )
    command.add_argument(
        "--save_probabilities", action="store_true", help="also write the probabilities, as nnU-Net does"
    )
    command.add_argument("--continue_prediction", action="store_true", help="skip cases that are segmented already")
    command.add_argument(
        "-num_parts", metavar="N", type=int, default=1, help="split the cases into N parts (default: 1)"
    )
    command.add_argument("-part_id", metavar="K", type=int, default=0, help="part to segment, from 0 (default: 0)")
    command.add_argument(
        "--series", metavar="ID", help="number or UID of the series to segment, if a DICOM folder holds several"
    )
    command.add_argument(
        "--structures",
        metavar="FILE",
        type=Path,
        help="names, colours and codes of the structures in a DICOM segmentation, as JSON of dcmqi or 3D Slicer",
    )
    command.add_argument(
        "--engine", metavar="NAME", default="auto", help="auto, openvino or onnxruntime (default: auto)"
    )
    command.add_argument(
        "--bf16", action="store_true", help="compute in bfloat16, faster on processors that can (with OpenVINO)"
    )
    command.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads (default: all cores available to the process)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Segment the images; return the exit status."""
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise ValueError(f"-part_id must be from 0 to {arguments.num_parts - 1}, got {arguments.part_id}")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.threads is not None:
        for library in ("OPENBLAS", "MKL", "OMP"):  # read when NumPy is imported
            os.environ.setdefault(f"{library}_NUM_THREADS", str(arguments.threads))
    from .cases import find_cases, find_series_case, is_series
    from .engines import available_threads, choose_engine
    from .model import Model
    from .predictor import files_of, predict_cases
    from .progress import shown

    engine = choose_engine(arguments.engine)
    threads = arguments.threads or available_threads()
    model = Model(arguments.m, engine, threads, arguments.step_size, not arguments.disable_tta, arguments.bf16)
    pipeline, ending = model.pipeline, model.pipeline.file_ending
    if is_series(arguments.i, ending):
        wanted = (arguments.series, arguments.structures)
        cases = [find_series_case(arguments.i, arguments.o, pipeline, model.name, *wanted)]
    else:
        _refuse_for_files(arguments)
        cases = find_cases(arguments.i, arguments.o, ending, len(pipeline.channels))
    of_folder = arguments.i.is_dir() and cases[0].series is None
    if of_folder:
        _name_strangers(strangers(arguments.i, ending), ending)
    images = [path for case in cases for path in case.images]
    elsewhere = "Give another folder with -o"

    def written(some: list[PredictionCase]) -> list[Path]:
        return [file for case in some for file in files_of(case, pipeline, arguments.save_probabilities)]

    check_kept(images, written(cases), elsewhere)  # of all cases, also those of other parts and those already done
    cases = cases[arguments.part_id :: arguments.num_parts]
    if arguments.continue_prediction:
        endings = [cases[0].ending(pipeline), *([".npz"] if arguments.save_probabilities else [])] if cases else []
        cases = [case for case in cases if not all(is_whole(Path(f"{case.target}{one}")) for one in endings)]
    if not cases:
        print("nothing to predict")
        return 0
    beside = _beside(arguments.o, model) if of_folder else {}
    check_kept([arguments.m, *_near(arguments, written(cases))], [*beside, *written(cases)], elsewhere)
    for case in cases:
        target = written([case])[0]
        for path in (*case.images, target):
            check_name(path)
        check_writable(target)
    for path, content in beside.items():
        write_whole(path, content)
    start = time.perf_counter()
    predict_cases(
        model,
        cases,
        arguments.save_probabilities,
        lambda work, count: shown(work, count, "case", True),
        lambda work, count: work if count < 20 else shown(work, count, "patch", False),
    )
    seconds = time.perf_counter() - start
    print(
        f"{len(cases)} cases in {seconds:.1f} s with {engine}, {threads} threads, "
        f"{model.model.precision}: {arguments.o}"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``nnunet_kd_predict``; return the exit status. A user's mistake becomes one line on standard error."""
    name = "nnunet_kd_predict"
    parser = argparse.ArgumentParser(
        prog=name, description=description(name), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except OSError as error:
        print(f"{name}: {in_words(error)}", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return 130


def in_words(error: OSError) -> str:
    """Describe an error in words: our own is a sentence already, one of the system has a number and often a file."""
    if error.errno is None:
        return str(error)
    named = error.filename2 or error.filename
    if is_full(error, Path()):
        return f"cannot write{f' {named}' if named else ''}: the disk is full"
    reason = (error.strerror or str(error)).lower()
    return f"cannot use {named}: {reason}" if named else reason


def _refuse_for_files(arguments: argparse.Namespace) -> None:
    for option in ("series", "structures"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} belongs to a DICOM folder, but {arguments.i} holds no DICOM series")


def _near(arguments: argparse.Namespace, written: list[Path]) -> list[Path]:
    """Return what else must be kept: files beside the images can be references. A file that -o names is excepted."""
    if arguments.i.is_dir():
        return [arguments.i, arguments.i.resolve().parent / "dataset.json"]
    return [] if arguments.o in written else [arguments.i.parent]


def _beside(folder: Path, model: Model) -> dict[Path, str]:
    """Return the files that nnU-Net writes beside segmentations and that do not exist yet."""
    content = {"dataset.json": model.dataset_json, "plans.json": model.plans}
    wanted = {folder / name: json.dumps(values, indent=1) for name, values in content.items()}
    return {path: text for path, text in wanted.items() if not _holds(path, text)}


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _name_strangers(names: Sequence[str], ending: str) -> None:
    """Tell which files in the folder of images are not segmented."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        print(f"nnunet_kd: {', '.join(names[:3])}{more} left out: images are named CASE_0000{ending}", file=sys.stderr)
