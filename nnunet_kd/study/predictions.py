"""Segment the validation cases of a study with nnU-Net's commands, and keep complete segmentations."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.storage.writing import not_written, write_whole
from nnunet_kd.study.study import Study
from nnunet_kd.study.trainings import FINAL


def predict(study: Study, model_folder: Path, fold: int, checkpoint: str = FINAL) -> Path:
    """Return a folder with segmentations of a fold's validation cases.

    It is nnU-Net's own validation folder if that is complete. Otherwise the cases are predicted; an earlier prediction
    is kept if it is complete, comes from this model and is not older than the model.

    Args:
        study: The study whose cases are predicted.
        model_folder: The results folder of an nnU-Net model.
        fold: The fold of the model and the cases.
        checkpoint: The name of the checkpoint file.

    Raises:
        DiskFullError: If there is no space for a file.
        RuntimeError: If the prediction fails.
    """
    names = [f"{case}{study.dataset_json['file_ending']}" for case in study.folds.cases_of(fold)]
    path = model_folder / f"fold_{fold}" / checkpoint
    trained = path.stat().st_mtime if path.is_file() else 0.0
    own = model_folder / f"fold_{fold}" / "validation"
    summary = own / "summary.json"  # nnU-Net writes it last, after it has read all segmentations
    ended = summary.stat().st_mtime if summary.is_file() else 0.0
    if checkpoint == FINAL and all(_is_whole(study, own / name, trained, ended) for name in names):
        return own
    which = "" if checkpoint == FINAL else f"_{Path(checkpoint).stem}"
    name = f"{model_folder.name}_fold_{fold}{which}"
    folder = study.out / "predictions" / name
    origin = folder / "checkpoint.txt"  # a model of another data set can have the same name
    same = origin.is_file() and origin.read_text(encoding="utf-8") == str(path)
    lost = [folder / name for name in names if not (same and _is_whole(study, folder / name, trained))]
    if not lost:
        return folder
    for prediction in lost:  # nnU-Net skips every existing file, even a truncated one
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
    """Return whether a segmentation exists, was written in that time, and can be read to its end."""
    try:
        if not begin <= path.stat().st_mtime <= end:
            return False
        read_segmentation(PlansManager(study.plans).image_reader_writer_class, path)
    except Exception:  # each image library has exceptions of its own
        return False
    return True
