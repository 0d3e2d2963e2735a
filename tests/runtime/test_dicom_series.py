"""A DICOM series is read as the volume that it is, or refused in one sentence that names the file."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from nnunet_kd.runtime.dicom import packages
from nnunet_kd.runtime.dicom.series import find_series, holds_dicom, read_volume
from tests.runtime.made_dicom import change, write_series

OBLIQUE = tuple(np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]).ravel())
SAGITTAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 2000, (6, 5, 4))


@pytest.mark.parametrize("direction", [(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), OBLIQUE, SAGITTAL])
def test_values_and_geometry_are_those_of_simpleitk(array, tmp_path, direction):
    files = write_series(tmp_path / "series", array, direction)
    series = find_series(tmp_path)
    assert list(series.files) == files
    volume = read_volume(series)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume), array)
    theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), array)
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(volume, name)() == pytest.approx(getattr(theirs, name)(), abs=1e-4), name


def test_slices_have_slopes_of_their_own(array, tmp_path):
    """As in PET."""
    files = write_series(tmp_path, array)
    change(files[2], RescaleSlope="0.25")
    found = sitk.GetArrayFromImage(read_volume(find_series(tmp_path)))
    expected = array.astype(float)
    expected[2] = (array[2] + 1024) * 0.25 - 1024
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices(tmp_path, syntax):
    array = np.random.default_rng(0).integers(-1000, 2000, (4, 33, 31))
    files = write_series(tmp_path, array)
    for path in files:
        header = pydicom.dcmread(path)
        header.compress(syntax, generate_instance_uid=False)
        header.save_as(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_volume(find_series(tmp_path))), array)
    files[1].write_bytes(files[1].read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"^cannot read {files[1]}: it is truncated"):
        find_series(tmp_path)


def test_a_single_slice_has_its_thickness(array, tmp_path):
    write_series(tmp_path, array[:1])
    assert find_series(tmp_path).geometry.spacing == pytest.approx((0.8, 0.7, 2.5))


def test_several_series_are_listed_and_one_is_chosen(array, tmp_path):
    write_series(tmp_path / "a", array)
    other = write_series(tmp_path / "b", array[:4], SeriesNumber=12, SeriesDescription="soft", Modality="MR")
    with pytest.raises(ValueError) as error:
        find_series(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds 2 series: choose one with --series, 3 (CT, made, 6 slices); 12 (MR, soft, 4 slices)"
    )
    assert list(find_series(tmp_path, "12").files) == other
    uid = str(pydicom.dcmread(other[0]).SeriesInstanceUID)
    assert list(find_series(tmp_path, uid).files) == other
    with pytest.raises(ValueError, match=r"holds no series '4', only 3 \(CT"):
        find_series(tmp_path, "4")
    third = write_series(tmp_path / "c", array, SeriesNumber=12)
    with pytest.raises(ValueError, match="holds more than one series '12', only 3 "):
        find_series(tmp_path, "12")
    assert list(find_series(tmp_path, str(pydicom.dcmread(third[0]).SeriesInstanceUID)).files) == third


def test_reports_and_leftovers_are_ignored(array, tmp_path):
    files = write_series(tmp_path, array)
    write_series(tmp_path / "report", array[:1], ImagePositionPatient=None, SeriesInstanceUID=generate_uid())
    (tmp_path / "._IM0003.dcm").write_bytes(b"macOS")
    (tmp_path / "notes.txt").write_text("nothing")
    assert list(find_series(tmp_path).files) == files and holds_dicom(tmp_path)
    assert not holds_dicom(tmp_path / "notes")


def truncate(files):
    files[3].write_bytes(files[3].read_bytes()[:-7])
    return rf"^cannot read {files[3]}: it is truncated$"


def truncate_beginning(files):
    files[3].write_bytes(files[3].read_bytes()[:140])
    return rf"^cannot read {files[3]}: it is truncated"


def truncate_header(files):
    files[-1].write_bytes(files[-1].read_bytes()[:560])
    assert "ImagePositionPatient" not in pydicom.dcmread(files[-1]) and "Modality" in pydicom.dcmread(files[-1])
    return rf"^cannot read {files[-1]}: it is truncated$"


def cut_away(files):
    files[3].write_bytes(b"")
    return rf"^cannot read {files[3]}: it is truncated or not a DICOM file$"


def lose(files):
    files[3].unlink()
    return (
        rf"^slices are unevenly spaced: {files[2]} and {files[4]} are 5 mm apart, but others 2.5 mm; add the missing "
        "slice, or resample the series$"
    )


def lose_the_last(files):
    for path in files[:-1]:
        change(path, NumberOfSeriesRelatedInstances=6)
    files[-1].unlink()
    return r" holds 5 of the 6 slices of its series: copy all of them$"


def stretch(files):
    for number, path in enumerate(files):
        change(path, ImagePositionPatient=[0, 0, 2.5 * number + 0.1 * number**2])
    return r"slices are unevenly spaced: .* are \S+ mm apart"


def repeat(files):
    header = pydicom.dcmread(files[2])
    change(files[3], ImagePositionPatient=list(header.ImagePositionPatient))
    return rf"^{files[2]} and {files[3]} show the same place, so the series holds several volumes"


def resize(files):
    change(files[3], Rows=4, Columns=5)
    return rf"^the series is mixed: {files[3]} has 4 rows, but {{0}} has 5 rows; keep one kind of slice$"


def rescale(files):
    change(files[3], PixelSpacing=[0.7, 0.9])
    return rf"^the series is mixed: {files[3]} has pixels of 0.7 x 0.9 mm, but {{0}} has pixels of 0.7 x 0.8 mm"


def turn(files):
    change(files[3], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    return rf"^the series is mixed: {files[3]} has the orientation 1 x 0 x 0 x 0 x 0 x -1, but {{0}} has"


def forget_the_pixels(files):
    change(files[3], PixelSpacing=None)
    return rf"^{files[3]} has no valid PixelSpacing, so its place in the patient is unknown$"


def colour(files):
    change(files[3], SamplesPerPixel=3, Rows=1, Columns=1)
    return rf"^{files[3]} must be one slice with one value per pixel$"


def lose_all_places(files):
    for path in files:
        change(path, ImagePositionPatient=None)
    return r"^no DICOM file in .* has a position in the patient \(ImagePositionPatient\)$"


def stack(files):
    for path in files:
        change(path, ImagePositionPatient=None, NumberOfFrames=2)
    return rf"^{sorted(files)[0]} holds several slices in one file \(enhanced DICOM\): convert it to NIfTI"


BAD = [
    truncate,
    truncate_beginning,
    truncate_header,
    cut_away,
    lose,
    lose_the_last,
    stretch,
    repeat,
    resize,
    rescale,
    turn,
]
BAD += [forget_the_pixels, colour, lose_all_places, stack]


@pytest.mark.parametrize("spoil", BAD)
def test_bad_series_are_refused(array, tmp_path, spoil):
    files = write_series(tmp_path, array)
    message = spoil(files).replace("{0}", str(sorted(files)[0]))
    with pytest.raises(ValueError, match=message) as error:
        find_series(tmp_path)
    assert "\n" not in str(error.value)


def test_gantry_tilt_is_refused(array, tmp_path):
    files = write_series(tmp_path, array, shear=0.22)
    with pytest.raises(ValueError) as error:
        find_series(tmp_path)
    assert str(error.value) == (
        f"the slices from {files[0]} to {files[-1]} are not stacked at right angles (gantry tilt, 5 degrees): resample "
        "the series to a grid with axes at right angles"
    )


def test_rounded_positions_are_accepted(array, tmp_path):
    files = write_series(tmp_path, np.repeat(array, 3, 0), spacing=(0.8, 0.7, 0.625))
    for path in files:
        place = pydicom.dcmread(path).ImagePositionPatient
        change(path, ImagePositionPatient=[f"{one:.1f}" for one in place])
    assert find_series(tmp_path).geometry.spacing[2] == pytest.approx(0.625, abs=0.01)


def test_a_missing_package_is_named(array, tmp_path, monkeypatch):
    write_series(tmp_path, array)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(packages.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pydicom is not installed, .*: pip install 'nnunet_kd\[dicom\]'$"):
        find_series(tmp_path)
