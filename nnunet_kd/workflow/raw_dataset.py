"""The raw data set of a distillation: links to images, and references in which unlabelled cases are ignored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunet_kd.evaluation.segmentation import read_segmentation
from nnunet_kd.nnunet.error_reasons import reason
from nnunet_kd.nnunet.images import images_by_case, in_order, is_left_over, link_cases
from nnunet_kd.nnunet.labels import label_text
from nnunet_kd.nnunet.reading import channel_names, label_values
from nnunet_kd.nnunet.unlabelled import empty_reference
from nnunet_kd.storage.integrity import check_whole, is_whole
from nnunet_kd.storage.writing import put_in_place, scratch_folder, write_whole
from nnunet_kd.teachers.mapping import ChannelMap, Heads

IGNORE = "ignore"
# The endings that nnU-Net's readers know, those of volumes first.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Cases:
    """The images and references that a user gives.

    Attributes:
        folder: The folder of the images.
        ending: The file ending of images and references.
        channels: The number of the teacher's channels.
        images: The image files of every case, one per channel of the teacher or one that holds all channels.
        labels: The reference of every labelled case.
    """

    folder: Path
    ending: str
    channels: int
    images: Mapping[str, Sequence[Path]]
    labels: Mapping[str, Path]

    @property
    def unlabelled(self) -> list[str]:
        """The cases without a reference."""
        return [case for case in self.images if case not in self.labels]


def find_cases(images: Path, labels: Path | None, teacher: Mapping[str, Any]) -> Cases:
    """Find the images of all cases, and the references that some of them have.

    Args:
        images: The folder of images with nnU-Net's names, ``CASE_0000.nii.gz`` and so on, with the teacher's channels.
        labels: The folder of references, ``CASE.nii.gz``; ``None`` if no case has one.
        teacher: The teacher's ``dataset.json``.

    Raises:
        ValueError: If there are no images, a case lacks a channel, or a reference belongs to no image.
        FileNotFoundError: If a folder does not exist.
    """
    for folder in filter(None, (images, labels)):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    ending = _ending(images, teacher["file_ending"])
    channels = len(channel_names(teacher))
    found = in_order(images_by_case(images, ending), channels, images, ending)
    if len(found) < 3:
        others = sum(path.name.endswith(ending) for path in images.iterdir()) - sum(map(len, found.values()))
        unnumbered = f"; {others} other names lack the number of the channel, such as _0000" if others > 0 else ""
        raise ValueError(
            f"{images} holds {len(found)} cases with names such as CASE_0000{ending}, but distillation needs at least "
            f"3: two to train with, and one that is kept back{unnumbered}"
        )
    references = {}
    for path in sorted(labels.iterdir()) if labels is not None else ():
        if path.name.endswith(ending) and not is_left_over(path.name):
            references[path.name[: -len(ending)]] = path
    if labels is not None and not references:
        raise ValueError(f"{labels} holds no reference with a name such as CASE{ending}")
    strange = next((case for case in references if case not in found), None)
    if strange is not None:
        raise ValueError(f"{references[strange]} belongs to no image in {images}: there is no {strange}_0000{ending}")
    return Cases(images, ending, channels, found, references)


def _ending(images: Path, usual: str) -> str:
    """Return the teacher's file ending, which the images must have because the teacher's own reader reads them.

    Raises:
        ValueError: If there are images of another format.
    """
    names = [path.name for path in images.iterdir() if path.is_file() and not is_left_over(path.name)]
    for ending in ENDINGS:
        other = sorted(name for name in names if name.endswith(f"_0000{ending}")) if ending != usual else []
        if other:
            raise ValueError(
                f"{images} holds {len(other)} {ending} images, such as {other[0]}, but the teacher reads {usual}: "
                "convert them, or take them away"
            )
    return usual


def student_dataset(
    teacher: Mapping[str, Any],
    cases: Cases,
    channels: Sequence[int] | None,
    label_map: Mapping[str, Sequence[str]] | None,
) -> dict[str, Any]:
    """Return the student's ``dataset.json``.

    Args:
        teacher: The teacher's ``dataset.json``.
        cases: The cases.
        channels: The numbers of the teacher's channels that the student sees; ``None`` for all.
        label_map: The teacher's structures of which each of the student's structures consists; ``None`` for the
            teacher's own structures.

    Raises:
        ValueError: If a channel or a structure does not exist.
    """
    names = [str(name) for name in channel_names(teacher).values()]
    chosen = range(len(names)) if channels is None else channels
    if channels is not None:
        ChannelMap.of(channels, teacher, {"channel_names": {str(i): str(i) for i in range(len(channels))}})
    dataset: dict[str, Any] = {
        "channel_names": {str(number): names[channel] for number, channel in enumerate(chosen)},
        **_labels(teacher, label_map),
        "numTraining": len(cases.images),
        "file_ending": cases.ending,
    }
    reader = teacher.get("overwrite_image_reader_writer")
    if reader and cases.ending == teacher["file_ending"]:
        dataset["overwrite_image_reader_writer"] = reader
    if cases.unlabelled:
        dataset["labels"][IGNORE] = 1 + max(value for labels in Heads.of(dataset).labels for value in labels)
    return dataset


def _labels(teacher: Mapping[str, Any], label_map: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    """Return the student's labels, and for regions the order in which they are written."""
    if label_map is not None:
        structures = [name for name in label_map if name != "background"]
        if not structures:
            raise ValueError("the label map names no structure of the student")
        return {"labels": {"background": 0, **{name: value for value, name in enumerate(structures, 1)}}}
    kept = {"labels": {name: value for name, value in teacher["labels"].items() if name != IGNORE}}
    return kept | {key: teacher[key] for key in ("regions_class_order",) if key in teacher}


def write_raw_dataset(
    folder: Path,
    cases: Cases,
    dataset: Mapping[str, Any],
    channels: Sequence[int] | None,
    skip_bad: bool,
    progress: Callable[[Sequence[str]], Iterable[str]],
) -> dict[str, str]:
    """Write the raw data set: links to the images, references, and ``dataset.json`` last.

    Args:
        folder: The data set's folder in ``nnUNet_raw``.
        cases: The cases.
        dataset: The student's ``dataset.json``.
        channels: The numbers of the teacher's channels that the student sees; ``None`` for all.
        skip_bad: Whether to leave out cases that cannot be read.
        progress: Wraps the names of the cases to show how far the work is.

    Returns:
        Why each case that was left out cannot be read.

    Raises:
        ValueError: If an image or a reference cannot be read, or if too few cases remain.
    """
    kind = determine_reader_writer_from_dataset_json(
        dict(dataset), str(next(iter(cases.images.values()))[0]), verbose=False
    )
    bad: dict[str, str] = {}
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    for case in progress(list(cases.images)):
        try:
            _write_reference(kind, cases, case, folder / "labelsTr", dataset)
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"{error}. Give --skip-bad to leave out such cases") from error
            bad[case] = str(error)
    kept = {case: files for case, files in cases.images.items() if case not in bad}
    if len(kept) < 3:
        raise ValueError(f"only {len(kept)} cases in {cases.folder} can be read, but distillation needs at least 3")
    linked = {case: _of_student(files, channels) for case, files in kept.items()}
    link_cases(folder / "imagesTr", linked, lambda case, number: f"{case}_{number:04d}{cases.ending}")
    labelled = {case: [path] for case, path in cases.labels.items() if case in kept}
    link_cases(folder / "labelsTr", labelled, lambda case, _: f"{case}{cases.ending}")
    content = {**dataset, "numTraining": len(kept)}
    write_whole(folder / "dataset.json", json.dumps(content, indent=2))
    return bad


def _of_student(files: Sequence[Path], channels: Sequence[int] | None) -> list[Path]:
    if channels is None:
        return list(files)
    if len(files) == 1 and len(channels) > 1:
        raise ValueError(f"{files[0]} holds all channels in one file, of which none can be left out")
    return [files[channel] for channel in channels]


def _is_newer(path: Path, images: Sequence[Path]) -> bool:
    return all(path.stat().st_mtime_ns > image.stat().st_mtime_ns for image in images if image.is_file())


def _write_reference(kind: type, cases: Cases, case: str, folder: Path, dataset: Mapping[str, Any]) -> None:
    """Check that a case can be read and, if it has no reference, write one that is ignored everywhere."""
    path = folder / f"{case}{cases.ending}"
    if case not in cases.labels and not path.is_symlink() and is_whole(path) and _is_newer(path, cases.images[case]):
        return
    for file in cases.images[case]:
        check_whole(file)
    try:
        images, properties = kind().read_images([str(file) for file in cases.images[case]])
    except Exception as error:  # each image library has exceptions of its own
        first = cases.images[case][0]
        raise ValueError(f"cannot read {first}: {reason(error, first)}") from error
    if len(images) != cases.channels:
        raise ValueError(f"{cases.images[case][0]} has {len(images)} channels, but the teacher has {cases.channels}")
    if not np.isfinite(images).all():
        raise ValueError(f"an image of case {case}, {cases.images[case][0]}, has voxels that are not finite")
    if case in cases.labels:
        _check_reference(kind, cases.labels[case], images.shape[1:], dataset)
        return
    path.unlink(missing_ok=True)
    ignored = empty_reference(images, dataset["labels"][IGNORE]).astype(np.uint8)
    with scratch_folder(path) as scratch:
        unfinished = scratch / path.name
        try:
            kind().write_seg(ignored, str(unfinished), properties)
        except Exception as error:  # nnU-Net's SimpleITKIO reads volumes in time, and cannot write their segmentation
            first = cases.images[case][0]
            raise ValueError(f"cannot write a segmentation of {first}: {reason(error, first)}") from error
        put_in_place(unfinished, path)


def _check_reference(kind: type, path: Path, shape: tuple[int, ...], dataset: Mapping[str, Any]) -> None:
    """Check that a reference can be read, fits its image and has the student's labels alone."""
    labels, _ = read_segmentation(kind, path)
    if labels.shape != shape:
        raise ValueError(f"{path} has the shape {labels.shape}, but its image has the shape {shape}")
    known = {value for listed in dataset["labels"].values() for value in label_values(listed)}
    strange = labels[~np.isin(labels, [*known])]
    if strange.size:
        names = ", ".join(f"{name} {listed}" for name, listed in dataset["labels"].items())
        raise ValueError(f"{path} has the label {label_text(strange[0])}, but the student's labels are {names}")
