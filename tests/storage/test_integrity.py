"""An image truncated at any byte is detected, unless it is still complete."""

import gzip
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_kd.storage.integrity import check_name, check_whole, is_whole

VOLUME = (np.random.default_rng(0).random((6, 11, 9)) > 0.5).astype(np.uint8)
PICTURE = VOLUME[:1]
PLACE = {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}


@pytest.mark.parametrize(
    ("reader", "ending", "labels"),
    [
        (SimpleITKIO, ".nii.gz", VOLUME),
        (SimpleITKIO, ".nii", VOLUME),
        (SimpleITKIO, ".nrrd", VOLUME),
        (SimpleITKIO, ".mha", VOLUME),
        (NaturalImage2DIO, ".png", PICTURE),
        (NaturalImage2DIO, ".bmp", PICTURE),
        (NaturalImage2DIO, ".tif", PICTURE),
        (Tiff3DIO, ".tif", VOLUME),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_truncated_segmentation_is_detected(tmp_path, reader, ending, labels):
    path = tmp_path / f"case{ending}"
    reader().write_seg(labels, str(path), {"sitk_stuff": PLACE, "spacing": [1, 1, 1]})
    content = path.read_bytes()
    check_whole(path)
    refused = 0
    for length in sorted({*range(0, len(content), 7), *range(max(len(content) - 30, 0), len(content))}):
        path.write_bytes(content[:length])
        try:
            check_whole(path)
            read = reader().read_seg(str(path))[0]
        except Exception:
            refused += 1
        else:
            np.testing.assert_array_equal(read[0], labels)
    assert refused > 0.8 * len(content) / 7


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_of_all_kinds(tmp_path, kind, order):
    path = tmp_path / "image.nii"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    nibabel.save(kind(VOLUME.astype(np.int16), np.eye(4), header), path)
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cannot read .*image.nii: it is truncated"):
        check_whole(path)


@pytest.mark.parametrize("place", [math.inf, -math.inf, math.nan])
def test_a_header_that_places_the_image_nowhere(tmp_path, place):
    path = tmp_path / "image.nii"
    nibabel.save(nibabel.Nifti1Image(VOLUME.astype(np.int16), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 108, place)
    path.write_bytes(content)
    assert not is_whole(path)
    with pytest.raises(ValueError, match="cannot read .*image.nii: it is truncated"):
        check_whole(path)


def test_a_valid_archive_with_too_few_bytes_is_detected(tmp_path):
    """Such a file arises if the disk was full for a moment."""
    path = tmp_path / "image.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(tmp_path / "image.nii"))
    content = (tmp_path / "image.nii").read_bytes()
    path.write_bytes(gzip.compress(content[:-100]))
    assert not is_whole(path)
    path.write_bytes(gzip.compress(content))
    assert is_whole(path)


def test_missing_files_and_other_formats(tmp_path):
    assert not is_whole(tmp_path / "nothing.nii.gz") and not is_whole(tmp_path / "nothing.png")
    (tmp_path / "text.txt").write_text("")
    assert is_whole(tmp_path / "text.txt")
    (tmp_path / "text.nii").write_bytes(b"no image")
    assert not is_whole(tmp_path / "text.nii")


@pytest.mark.parametrize("name", ["image.nii.gz", "IMAGE.NII.GZ"])
def test_an_uncompressed_file_with_a_compressed_name_is_accepted(tmp_path, name):
    """SimpleITK, and therefore nnU-Net, reads it."""
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(tmp_path / "image.nii"))
    content = (tmp_path / "image.nii").read_bytes()
    path.write_bytes(content)
    check_whole(path)
    if name == "image.nii.gz":
        np.testing.assert_array_equal(SimpleITKIO().read_seg(str(path))[0][0], VOLUME)
    for length, message in ((len(content) - 1, "it is truncated"), (300, "it is truncated"), (0, "it is empty")):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"^cannot read .*{name}: {message}$"):
            check_whole(path)


def test_a_compressed_file_with_an_uncompressed_name_is_refused(tmp_path):
    """No reader accepts it, although it is complete."""
    path = tmp_path / "image.nii"
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(tmp_path / "image.nii.gz"))
    path.write_bytes((tmp_path / "image.nii.gz").read_bytes())
    with pytest.raises(ValueError, match=r"image\.nii: it is compressed, so its name must end in \.nii\.gz$"):
        check_whole(path)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))


def test_a_path_that_python_cannot_decode():
    """SimpleITK would terminate the process."""
    check_name(Path("/data/k\N{LATIN SMALL LETTER O WITH DIAERESIS}pfe"))
    with pytest.raises(ValueError, match=r"cannot open '/data/k\\udcf6pfe': the name is not in utf-8; rename it$"):
        check_whole(Path("/data/k\udcf6pfe"))
    code = (
        "import pathlib, sys; from nnunet_kd.storage.integrity import check_name; check_name(pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", code, "/data/k\N{LATIN SMALL LETTER O WITH DIAERESIS}pfe"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert "the name is not in ascii; set PYTHONUTF8=1 for names in UTF-8" in done.stderr
    assert subprocess.run(words, env={**environment, "PYTHONUTF8": "1"}).returncode == 0
