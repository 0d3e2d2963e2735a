"""DICOM series made with pydicom from an array and its place in the patient."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (0.8, 0.7, 2.5)  # x, y, z in mm
ORIGIN = (-31.5, 12.25, -77.0)
DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def write_series(
    folder: Path,
    array: np.ndarray,
    direction: tuple[float, ...] = DIRECTION,
    spacing: tuple[float, float, float] = SPACING,
    shear: float = 0.0,
    **more: Any,
) -> list[Path]:
    """Write a CT series, one file per plane in an order that their names do not give; return the files in this order.

    Args:
        folder: The folder, made if it is missing.
        array: Hounsfield units from -1024 on, ``(z, y, x)``.
        direction: The directions of x, y, z, in the columns of a matrix.
        spacing: The voxel size along x, y, z in mm.
        shear: The mm by which every slice is moved along y against the one before (gantry tilt).
        **more: Other attributes of every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = np.reshape(direction, (3, 3))
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    files = []
    for number, plane in enumerate(array):
        place = np.array(ORIGIN) + number * (spacing[2] * axes[:, 2] + shear * axes[:, 1])
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{(7 * number + 3) % 101:04d}.dcm"
        header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        values = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            **uids,
            "Modality": "CT",
            "PatientName": "Made^Case",
            "PatientID": "1",
            "StudyDate": "20240131",
            "StudyTime": "120000",
            "SeriesNumber": 3,
            "SeriesDescription": "made",
            "InstanceNumber": number + 1,
            "ImagePositionPatient": [f"{one:.6f}" for one in place],
            "ImageOrientationPatient": [f"{one:.8f}" for one in (*axes[:, 0], *axes[:, 1])],
            "PixelSpacing": [spacing[1], spacing[0]],
            "SliceThickness": spacing[2],
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "RescaleIntercept": -1024,
            "RescaleSlope": 1,
            **more,
        }
        for name, value in values.items():
            if value is not None:
                setattr(header, name, value)
        header.PixelData = (plane + 1024).astype("<u2").tobytes()
        header.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def change(path: Path, **values: Any) -> None:
    """Set attributes of a DICOM file, or remove those that are ``None``."""
    header = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


def write_nifti(path: Path, array: np.ndarray, direction=DIRECTION, spacing=SPACING) -> None:
    """Write the same volume as NIfTI."""
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetSpacing(spacing)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def segments(path: Path) -> dict[str, dict[tuple[float, ...], np.ndarray]]:
    """Read a DICOM segmentation with pydicom alone: its masks by the name of the segment and the place of the frame."""
    found = pydicom.dcmread(path)
    names = {one.SegmentNumber: one.SegmentLabel for one in found.SegmentSequence}
    masks: dict[str, dict[tuple[float, ...], np.ndarray]] = {name: {} for name in names.values()}
    frames = found.pixel_array.reshape(-1, found.Rows, found.Columns)
    for frame, groups in zip(frames, found.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = tuple(round(float(one), 3) for one in groups.PlanePositionSequence[0].ImagePositionPatient)
        masks[names[number]][place] = frame.astype(bool)
    return masks
