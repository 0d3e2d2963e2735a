"""``nnunet_kd predict``: segment images with an ONNX model."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_kd.deploy.predictor import OnnxPredictor, PredictionCase

_DESCRIPTION = """\
Segment images on the CPU with a model from nnunet_kd export onnx. Image names, shared options and written files are
those of nnUNetv2_predict.

  nnunet_kd predict -m student_onnx -i imagesTs -o segmentations
      segment every case in the folder imagesTs
  nnunet_kd predict -m student_onnx -i case_0000.nii.gz -o case.nii.gz --disable_tta
      segment one case without mirroring
  nnunet_kd predict ... --continue_prediction
      resume after an interruption: finished cases are skipped
  nnunet_kd predict ... -num_parts 2 -part_id 0
      segment the first half of the cases; run -part_id 1 on another machine

You can write segmentations beside the images, such as case.nii.gz beside case_0000.nii.gz. No input is ever
overwritten.

The engine is OpenVINO if it is installed (pip install 'nnunet_kd[openvino]'), otherwise ONNX Runtime.
"""


def add_parser(commands: Any) -> None:
    """Add the command ``predict`` and its arguments."""
    command = commands.add_parser(
        "predict",
        help="segment images with an ONNX model",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-m", metavar="DIR", type=Path, required=True, help="folder of the exported model")
    command.add_argument("-i", metavar="PATH", type=Path, required=True, help="folder of images, or one image")
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
        "--engine", metavar="NAME", default="auto", help="auto, openvino or onnxruntime (default: auto)"
    )
    command.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads (default: all cores available to the process)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment the images; return the exit status."""
    if arguments.num_parts < 1 or not 0 <= arguments.part_id < arguments.num_parts:
        raise ValueError(f"-part_id must be from 0 to {arguments.num_parts - 1}, got {arguments.part_id}")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    from tqdm import tqdm

    from nnunet_kd.deploy.engines import available_threads, choose_engine
    from nnunet_kd.deploy.predictor import OnnxPredictor, find_cases
    from nnunet_kd.nnunet.images import strangers
    from nnunet_kd.storage.integrity import check_name, is_whole
    from nnunet_kd.storage.overwriting import check_kept
    from nnunet_kd.storage.writing import check_writable, write_whole

    engine = choose_engine(arguments.engine)
    threads = arguments.threads or available_threads()
    predictor = OnnxPredictor(arguments.m, engine, threads, arguments.step_size, not arguments.disable_tta)
    cases = find_cases(arguments.i, arguments.o, predictor.file_ending, predictor.channels)
    if arguments.i.is_dir():
        _name_strangers(strangers(arguments.i, predictor.file_ending), predictor.file_ending)
    images = [path for case in cases for path in case.images]
    elsewhere = "Give another folder with -o"

    def written(some: list[PredictionCase]) -> list[Path]:
        return [file for case in some for file in predictor.files_of(case, arguments.save_probabilities)]

    check_kept(images, written(cases), elsewhere)  # of all cases, also those of other parts and those already done
    cases = cases[arguments.part_id :: arguments.num_parts]
    if arguments.continue_prediction:
        endings = [predictor.file_ending, *([".npz"] if arguments.save_probabilities else [])]
        cases = [case for case in cases if not all(is_whole(Path(f"{case.target}{ending}")) for ending in endings)]
    if not cases:
        print("nothing to predict")
        return 0
    beside = _beside(arguments.o, predictor) if arguments.i.is_dir() else {}
    check_kept([arguments.m, *_near(arguments, predictor, cases)], [*beside, *written(cases)], elsewhere)
    for case in cases:
        target = Path(f"{case.target}{predictor.file_ending}")
        for path in (*case.images, target):
            check_name(path)
        check_writable(target)
    for path, content in beside.items():
        write_whole(path, content)

    def progress(unit: str, leave: bool) -> Any:
        def show(work: Iterable[Any], count: int) -> Iterable[Any]:
            bar: Iterable[Any] = tqdm(work, total=count, unit=unit, leave=leave, disable=not leave and count < 20)
            return bar

        return show

    start = time.perf_counter()
    predictor.predict(cases, arguments.save_probabilities, progress("case", True), progress("patch", False))
    seconds = time.perf_counter() - start
    print(
        f"{len(cases)} cases in {seconds:.1f} s with {engine}, {threads} threads, "
        f"{predictor.model.precision}: {arguments.o}"
    )
    return 0


def _near(arguments: argparse.Namespace, predictor: OnnxPredictor, cases: list[PredictionCase]) -> list[Path]:
    """Return what else must be kept: files beside the images can be references. A file that -o names is excepted."""
    if arguments.i.is_dir():
        return [arguments.i, arguments.i.resolve().parent / "dataset.json"]
    named = any(predictor.files_of(case, False)[0] == arguments.o for case in cases)
    return [] if named else [arguments.i.parent]


def _beside(folder: Path, predictor: OnnxPredictor) -> dict[Path, str]:
    """Return the files that nnU-Net writes beside segmentations and that do not exist yet."""
    content = {"dataset.json": predictor.dataset_json, "plans.json": predictor.plans}
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
