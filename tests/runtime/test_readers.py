"""Images are read and segmentations are written as nnU-Net's readers and writers do it."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from PIL import Image

from nnunet_kd.runtime.readers import FORMATS

ODD = (0, 0, 1, -1, 0, 0, 0, -1, 0)  # axes swapped and mirrored
VOLUME = np.random.default_rng(0).integers(-900, 900, (5, 6, 7)).astype(np.int16)
LABELS = np.random.default_rng(1).integers(0, 4, (5, 6, 7)).astype(np.uint8)


def volume(path, array=VOLUME):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5)[: image.GetDimension()])
    image.SetOrigin((-3.0, 12.0, 40.0)[: image.GetDimension()])
    if image.GetDimension() == 3:
        image.SetDirection(ODD)
    sitk.WriteImage(image, str(path))


def check(reader, path, out, labels):
    """Compare the image, its voxel size and the written segmentation, which nnU-Net reads."""
    theirs = recursive_find_reader_writer_by_name(reader)()
    expected, properties = theirs.read_images([str(path)])
    array, header = FORMATS[reader].read(path)
    np.testing.assert_array_equal(array.astype(np.float32), expected)
    assert tuple(header.spacing) == pytest.approx(tuple(map(float, properties["spacing"])))
    (out / "theirs").mkdir()
    names = [out / f"case{''.join(path.suffixes)}", out / "theirs" / f"case{''.join(path.suffixes)}"]
    FORMATS[reader].write(labels, names[0], header)
    theirs.write_seg(labels, str(names[1]), properties)
    (found, header), (wanted, properties) = theirs.read_seg(str(names[0])), theirs.read_seg(str(names[1]))
    np.testing.assert_array_equal(found, wanted)
    assert json.loads(json.dumps(header, default=list)) == json.loads(json.dumps(properties, default=list))
    return names


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".gipl"])
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
def test_volumes(tmp_path, ending, reader):
    volume(tmp_path / f"image_0000{ending}")
    labels = np.transpose(LABELS, (1, 2, 0)) if reader != "SimpleITKIO" else LABELS
    array, _ = FORMATS[reader].read(tmp_path / f"image_0000{ending}")
    check(reader, tmp_path / f"image_0000{ending}", tmp_path, np.resize(labels, array.shape[1:]))


@pytest.mark.parametrize("reader", ["NibabelIO", "NibabelIOWithReorient"])
def test_volumes_by_nibabel(tmp_path, reader):
    path = tmp_path / "image_0000.nii.gz"
    affine = np.array([[0, 0, 2.5, 4], [-0.7, 0, 0, 5], [0, -0.8, 0, 6], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(VOLUME, affine)
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, path)
    array, _ = FORMATS[reader].read(path)
    names = check(reader, path, tmp_path, np.resize(LABELS, array.shape[1:]))
    np.testing.assert_allclose(nibabel.load(names[0]).affine, affine)


def test_a_slice_has_one_plane(tmp_path):
    path = tmp_path / "image_0000.nii.gz"
    volume(path, VOLUME[0])
    check("SimpleITKIO", path, tmp_path, LABELS[:1])


def test_channels_of_four_dimensions(tmp_path):
    path = tmp_path / "image_0000.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(VOLUME)] * 3), str(path))
    expected, properties = recursive_find_reader_writer_by_name("SimpleITKIO")().read_images([str(path)])
    array, header = FORMATS["SimpleITKIO"].read(path)
    assert array.shape == expected.shape == (3, 5, 6, 7) and list(header.spacing) == properties["spacing"]


def test_several_values_per_voxel_are_refused(tmp_path):
    path = tmp_path / "image_0000.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(path))
    with pytest.raises(ValueError, match="its voxels have 3 values each, but must have one"):
        FORMATS["SimpleITKIO"].read(path)


COLOURS = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
PICTURES = {
    "colour.png": Image.fromarray(COLOURS[..., :3]),
    "colour.bmp": Image.fromarray(COLOURS[..., :3]),
    "transparent.png": Image.fromarray(COLOURS),
    "grey.png": Image.fromarray(COLOURS[..., 0]),
    "grey.bmp": Image.fromarray(COLOURS[..., 0]),
    "palette.png": Image.fromarray(COLOURS[..., :3]).convert("P"),
    "deep.png": Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 200),
    "bits.png": Image.fromarray(COLOURS[..., 0]).convert("1"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(tmp_path, name):
    PICTURES[name].save(tmp_path / name)
    check("NaturalImage2DIO", tmp_path / name, tmp_path, LABELS[:1])


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3), (3, 6, 7)])
def test_pictures_in_tiff(tmp_path, shape):
    path = tmp_path / "image_0000.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8), photometric="minisblack")
    check("NaturalImage2DIO", path, tmp_path, LABELS[:1])


@pytest.mark.parametrize("spacing", [None, [5.0, 1.0, 0.5]])
def test_volumes_in_tiff(tmp_path, spacing, capsys):
    path = tmp_path / "image_0000.tif"
    tifffile.imwrite(path, VOLUME)
    if spacing is not None:
        (tmp_path / "image.json").write_text(json.dumps({"spacing": spacing}))
    names = check("Tiff3DIO", path, tmp_path, LABELS)
    assert [json.loads(name.with_suffix(".json").read_text()) for name in names] == [
        {"spacing": spacing or [1, 1, 1]}
    ] * 2


def test_a_wrong_voxel_size_file_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "image_0000.tif", VOLUME)
    (tmp_path / "image.json").write_text('{"spacing": [1]}')
    with pytest.raises(ValueError, match=r"image\.json must hold the voxel size as three numbers, such as"):
        FORMATS["Tiff3DIO"].read(tmp_path / "image_0000.tif")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(ImportError, match="tifffile is not installed, which this format needs: pip install tifffile"):
        FORMATS["Tiff3DIO"].read(tmp_path / "image_0000.tif")
