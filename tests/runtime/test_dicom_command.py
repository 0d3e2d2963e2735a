"""The command segments a DICOM series and writes DICOM-SEG or NIfTI on its geometry."""

import json

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from nnunet_kd.cli import main
from nnunet_kd.runtime import Segmenter
from tests.runtime.made_dicom import DIRECTION, SPACING, change, segments, write_nifti, write_series
from tests.runtime.made_model import make_model

ZYX = SPACING[::-1]
LIMITS = (100, 400)
OBLIQUE = tuple(np.array([[0, -0.8, 0.6], [-1, 0, 0], [0, -0.6, -0.8]]).ravel())


@pytest.fixture
def array():
    """Intensities that the labels of the model follow, with a slice without any structure."""
    values = np.random.default_rng(0).integers(-200, 700, (7, 20, 18))
    values[2] = 0
    values[0, 0, 0] = -500
    return values


def labels_of(array):
    return sum((array > limit).astype(np.uint8) for limit in LIMITS)


def run(model, images, out, *words):
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(out), "--threads", "1", *map(str, words)])


def check_segments(path, files, expected):
    """Compare every voxel by the positions of the frames; ``expected`` is one mask ``(z, y, x)`` per name."""
    found = segments(path)
    assert list(found) == list(expected)
    for name, masks in expected.items():
        left = dict(found[name])
        for file, mask in zip(files, masks, strict=True):
            place = tuple(round(float(one), 3) for one in pydicom.dcmread(file).ImagePositionPatient)
            np.testing.assert_array_equal(left.pop(place, np.zeros_like(mask)), mask)
        assert not left


@pytest.mark.parametrize("direction", [DIRECTION, OBLIQUE])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_labels_lie_where_the_intensities_do(array, tmp_path, direction, reader):
    """Also with axes that the model's reader flips and exchanges."""
    files = write_series(tmp_path / "scan", array, direction)
    reoriented = ZYX if reader == "SimpleITKIO" or direction == DIRECTION else (SPACING[2], SPACING[0], SPACING[1])
    model = make_model(tmp_path / "model", LIMITS, reoriented, reader=reader)
    assert run(model, tmp_path / "scan", tmp_path / "seg.dcm") == 0
    labels = labels_of(array)
    check_segments(tmp_path / "seg.dcm", files, {"structure 1": labels == 1, "structure 2": labels == 2})
    assert run(model, tmp_path / "scan", tmp_path / "seg.nii.gz") == 0
    written = sitk.ReadImage(str(tmp_path / "seg.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels)
    write_nifti(tmp_path / "scan.nii.gz", array, direction)
    wanted = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, name)() == pytest.approx(getattr(wanted, name)(), abs=1e-4), name


def test_a_series_gives_what_its_nifti_gives(array, tmp_path, capsys):
    """With resampling, in a folder that is called like the series, and from Python."""
    write_series(tmp_path / "scan", array)
    write_nifti(tmp_path / "images" / "scan_0000.nii.gz", array)
    model = make_model(tmp_path / "model", LIMITS, (2.0, 1.0, 1.1), transpose=(2, 0, 1))
    assert run(model, tmp_path / "scan", tmp_path / "of_series") == 0
    assert run(model, tmp_path / "images", tmp_path / "of_nifti") == 0
    assert [path.name for path in (tmp_path / "of_series").iterdir()] == ["scan.nii.gz"]
    found, expected = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / folder / "scan.nii.gz")))
        for folder in ("of_series", "of_nifti")
    )
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == 3
    segmenter = Segmenter(model, threads=1)
    np.testing.assert_array_equal(segmenter.segment_file(tmp_path / "scan"), expected)
    np.testing.assert_array_equal(segmenter.segment_file(tmp_path / "scan", tmp_path / "seg.dcm"), expected)
    assert segments(tmp_path / "seg.dcm").keys() == {"structure 1", "structure 2"}
    assert "left out" not in capsys.readouterr().err
    assert run(model, tmp_path / "scan", tmp_path / "seg.dcm", "--continue_prediction") == 0
    assert capsys.readouterr().out == "nothing to predict\n"


def test_regions_are_segments_that_overlap(array, tmp_path):
    files = write_series(tmp_path / "scan", array)
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    model = make_model(tmp_path / "model", LIMITS, ZYX, labels, regions_class_order=[1, 2])
    assert run(model, tmp_path / "scan", tmp_path / "seg.dcm") == 0
    check_segments(tmp_path / "seg.dcm", files, {"whole": array > 100, "core": array > 400})


def test_the_record_in_a_segmentation(array, tmp_path):
    """Patient, study and geometry are those of the series; names and colours come from the JSON file."""
    (first, *_) = write_series(tmp_path / "scan", array)
    model = make_model(tmp_path / "model", LIMITS, ZYX)
    liver = {"CodeValue": "10200004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Liver"}
    described = {"labelID": 2, "SegmentLabel": "liver", "recommendedDisplayRGBValue": [255, 0, 0]}
    content = {"segmentAttributes": [[{**described, "SegmentedPropertyTypeCodeSequence": liver}]]}
    (tmp_path / "names.json").write_text(json.dumps(content))
    assert run(model, tmp_path / "scan", tmp_path / "seg.dcm", "--structures", tmp_path / "names.json") == 0
    found, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(first)
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
        assert found[name].value == source[name].value, name
    assert found.Modality == "SEG" and found.SegmentationType == "BINARY"
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    one, other = found.SegmentSequence
    assert (one.SegmentLabel, other.SegmentLabel) == ("structure 1", "liver")
    assert one.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert other.SegmentAlgorithmType == "AUTOMATIC"
    assert other.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "nnU-Net Dataset999_Made"
    lightness, red, yellow = other.RecommendedDisplayCIELabValue  # red is L* 53, a* 80, b* 67
    scaled = (lightness * 100 / 65535, red * 255 / 65535 - 128, yellow * 255 / 65535 - 128)
    assert scaled == pytest.approx((53.2, 80.1, 67.2), abs=0.5)
    assert one.RecommendedDisplayCIELabValue != other.RecommendedDisplayCIELabValue


def test_a_series_without_names_and_structures(array, tmp_path):
    """Programs that remove names leave attributes out, and a segmentation can be empty."""
    files = write_series(tmp_path / "scan", np.minimum(array, 0), PatientName=None, PatientID=None, StudyDate=None)
    model = make_model(tmp_path / "model", LIMITS, ZYX)
    assert run(model, tmp_path / "scan", tmp_path / "scan" / "seg.dcm") == 0
    nothing = np.zeros(array.shape, bool)
    check_segments(tmp_path / "scan" / "seg.dcm", files, {"structure 1": nothing, "structure 2": nothing})
    assert run(model, tmp_path / "scan", tmp_path / "again.dcm") == 0  # the segmentation is not taken for an image


def no_reference(files, words):
    change(files[1], FrameOfReferenceUID=None)
    return "IM0010.dcm has no FrameOfReferenceUID, to which a DICOM segmentation must refer"


def tilted(files, words):
    files[3].unlink()
    return "slices are unevenly spaced"


def wrong_series(files, words):
    words += ["--series", "9"]
    return "holds no series '9', only 3 (CT, made, 7 slices)"


def missing_structures(files, words):
    words += ["--structures", "nowhere.json"]
    return "nowhere.json"


def wrong_structures(files, words):
    path = files[0].parent.parent / "names.json"
    path.write_text(json.dumps({"segmentAttributes": [[{"labelID": 3}]]}))
    words += ["--structures", path]
    return "names.json does not describe structures: labelID must be from 1 to 2, got 3"


@pytest.mark.parametrize("spoil", [no_reference, tilted, wrong_series, missing_structures, wrong_structures])
def test_refusals_write_nothing(array, tmp_path, capsys, spoil):
    files = write_series(tmp_path / "scan", array)
    model = make_model(tmp_path / "model", LIMITS, ZYX)
    words = []
    message = spoil(files, words)
    before = sorted(tmp_path.rglob("*"))
    assert run(model, tmp_path / "scan", tmp_path / "out" / "seg.dcm", *words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_slice_that_cannot_be_decoded_leaves_nothing(array, tmp_path, capsys):
    files = write_series(tmp_path / "scan", array)
    change(files[2], BitsAllocated=13)
    assert run(make_model(tmp_path / "model", LIMITS, ZYX), tmp_path / "scan", tmp_path / "out" / "seg.dcm") == 1
    error = capsys.readouterr().err
    assert f"case scan: cannot read {files[2]}" in error and not list((tmp_path / "out").glob("*"))


def test_what_is_no_series(array, tmp_path, capsys):
    write_series(tmp_path / "scan", array)
    write_nifti(tmp_path / "images" / "a_0000.nii.gz", array)
    model = make_model(tmp_path / "model", LIMITS, ZYX)
    several = make_model(tmp_path / "several", LIMITS, ZYX, channels=2)
    pictures = make_model(tmp_path / "pictures", LIMITS, ZYX, reader="NaturalImage2DIO")
    refusals = [
        ((model, "images", "seg.dcm"), "seg.dcm: only the segmentation of a DICOM series can be DICOM"),
        ((model, "images", "out", "--series", "3"), "--series belongs to a DICOM folder, but "),
        ((model, "images", "out", "--structures", "x"), "--structures belongs to a DICOM folder, but "),
        (
            (model, "scan", "out", "--structures", "x"),
            "x describes the structures of a DICOM segmentation: give a .dcm",
        ),
        ((several, "scan", "out"), "is one channel, but the model takes 2 (channel 0, channel 1): convert each"),
        ((pictures, "scan", "out"), "the model takes .nii.gz files that nnU-Net reads as pictures, not DICOM"),
        ((model, "scan", "scan/IM0003.dcm"), "it is one of the inputs"),
    ]
    for (folder, images, out, *words), message in refusals:
        assert run(folder, tmp_path / images, tmp_path / out, *words) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and not (tmp_path / "seg.dcm").exists()
