"""Segmentations of a study's validation cases, with nnU-Net's commands; what is whole already is kept."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.storage.writing import not_written, write_whole
from nnunet_kd.study.study import FINAL, Study


def predict(study: Study, model_folder: Path, fold: int, checkpoint: str = FINAL) -> Path:
    """Segmentations of the fold's validation cases: nnU-Net's own validation where it is whole, else predicted.

    What was predicted before is kept where it is whole, of this model, and not older than it.

    Args:
        study: Whose cases are predicted.
        model_folder: Results folder of any nnU-Net.
        fold: The fold of model and cases.
        checkpoint: Of the fold.

    Raises:
        DiskFullError: Where there is no space for a file.
        RuntimeError: Where the prediction fails.
    """
    names = [f"{case}{study.dataset_json['file_ending']}" for case in study.folds.cases_of(fold)]
    path = model_folder / f"fold_{fold}" / checkpoint
    trained = path.stat().st_mtime if path.is_file() else 0.0
    own = model_folder / f"fold_{fold}" / "validation"
    summary = own / "summary.json"  # nnU-Net writes it when it has read all the others
    ended = summary.stat().st_mtime if summary.is_file() else 0.0
    if checkpoint == FINAL and all(_is_whole(study, own / name, trained, ended) for name in names):
        return own
    which = "" if checkpoint == FINAL else f"_{Path(checkpoint).stem}"
    name = f"{model_folder.name}_fold_{fold}{which}"
    folder = study.out / "predictions" / name
    origin = folder / "checkpoint.txt"  # a model of another data set may have the same name
    same = origin.is_file() and origin.read_text(encoding="utf-8") == str(path)
    lost = [folder / name for name in names if not (same and _is_whole(study, folder / name, trained))]
    if not lost:
        return folder
    for prediction in lost:  # nnU-Net goes on after every file that is there, cut off or not
        prediction.unlink(missing_ok=True)
    write_whole(origin, str(path))
    study.commands.run(
        f"predict_{name}",
        "nnUNetv2_predict_from_modelfolder",
        *("-i", str(study.images_of(fold)), "-o", str(folder), "-m", str(model_folder), "-f", str(fold)),
        *("-chk", checkpoint),
        *("-npp", "1", "-nps", "1", "-device", study.device, "--continue_prediction"),
    )
    for path in (folder / name for name in names):
        if not _is_whole(study, path, trained):
            raise not_written(path)
    return folder


def _is_whole(study: Study, path: Path, begin: float, end: float = float("inf")) -> bool:
    """Whether a segmentation is there, was written in that time, and can be read to its end."""
    try:
        if not begin <= path.stat().st_mtime <= end:
            return False
        read_segmentation(PlansManager(study.plans).image_reader_writer_class, path)
    except Exception:  # of whatever library reads the format
        return False
    return True
