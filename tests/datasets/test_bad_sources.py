"""A bad source costs one line, and nothing of the data set is left."""

import gzip
import io
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_kd.datasets.conversion import convert_dataset
from nnunet_kd.datasets.kvasir_seg import KvasirSEG
from tests.datasets import layouts
from tests.datasets.converting import convert, read

BREAKS = {
    "truncated image": (
        "BraTS2021",
        lambda root: _truncate(root / "BraTS2021_00002" / "BraTS2021_00002_t2.nii.gz"),
        "BraTS2021_00002: cannot read .*BraTS2021_00002_t2.nii.gz",
    ),
    "missing modality": (
        "BraTS2021",
        lambda root: (root / "BraTS2021_00002" / "BraTS2021_00002_t2.nii.gz").unlink(),
        "BraTS2021_00002: .*BraTS2021_00002 has no t2",
    ),
    "unexpected label": (
        "BraTS2021",
        lambda root: _relabel(root / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz", 3),
        "BraTS2021_00002_seg.nii.gz has the label 3, expected are 0, 1, 2, 4",
    ),
    "half a label": (
        "Synapse",
        lambda root: _relabel(root / "label" / "label0002.nii.gz", 1.5),
        "label0002.nii.gz has the label 1.5",
    ),
    "almost a label": (
        "Synapse",
        lambda root: _relabel(root / "label" / "label0002.nii.gz", 0.9985),
        "label0002.nii.gz has the label 0.9985, expected are 0, 1, ",
    ),
    "a series": (
        "Synapse",
        lambda root: layouts.write(
            sitk.JoinSeries([read(root / "img/img0002.nii.gz")[1]] * 2), root / "img/img0002.nii.gz"
        ),
        "img0002.nii.gz has 4 dimensions and 1 channel, but a 3-D image of one channel is expected",
    ),
    "another grid": (
        "Synapse",
        lambda root: layouts.write(
            layouts.volume(layouts.labels((1,)), origin=(0, 0, 0)), root / "label/label0002.nii.gz"
        ),
        "label0002.nii.gz is not on the grid of img0002.nii.gz",
    ),
    "no label": (
        "Synapse",
        lambda root: (root / "label" / "label0002.nii.gz").unlink(),
        "synapse_0002: there is no label .*label0002.nii.gz",
    ),
    "grey in a PNG mask": (
        "ISIC2018",
        lambda root: layouts.write(
            np.full((44, 52), 7, np.uint8), root / "ISIC2018_Task1_Training_GroundTruth/ISIC_0000001_segmentation.png"
        ),
        "ISIC_0000001_segmentation.png has the values 7",
    ),
    "mask of another size": (
        "KvasirSEG",
        lambda root: layouts.write(np.zeros((9, 9, 3), np.uint8), root / "masks/cju1.jpg"),
        "cju1.jpg has 9 x 9 pixels, its image 52 x 44",
    ),
    "no mask": ("KvasirSEG", lambda root: (root / "masks/cju1.jpg").unlink(), "cju1: there is no mask .*cju1.jpg"),
    "not a picture": (
        "BUSI",
        lambda root: (root / "malignant" / "malignant (2).png").write_bytes(b"PNG"),
        r"malignant_0002: cannot read .*malignant \(2\).png",
    ),
    "colours of 16 bits": (
        "KvasirSEG",
        lambda root: _deep_colours(root / "images" / "cju1.jpg"),
        "cju1: .*cju1.png has more than 8 bits per channel",
    ),
    "empty outline": (
        "FetalHeadHC18",
        lambda root: layouts.write(np.zeros((60, 80), np.uint8), root / "training_set/001_HC_Annotation.png"),
        "001_HC_Annotation.png is empty",
    ),
    "no pixel size": (
        "FetalHeadHC18",
        lambda root: (root / "training_set_pixel_size_and_HC.csv").write_text("filename,size\n000_HC.png,0.1\n"),
        "001_HC: .* has no table with the pixel size of 001_HC.png",
    ),
    "mask lost": (
        "TCGALGG",
        lambda root: next(root.glob("kaggle_3m/*/*_10_mask.tif")).unlink(),
        "there is no mask .*_10_mask.tif",
    ),
    "link to nothing": (
        "FCD2023",
        lambda root: _dangle(next(root.glob("sub-*/anat/*_roi.nii.gz"))),
        r"cannot read .*_roi.nii.gz: it is a link to .*annex/object, which is not there",
    ),
    "sheared": (
        "BraTS2021",
        lambda root: _shear(root / "BraTS2021_00002" / "BraTS2021_00002_t2.nii.gz"),
        "cannot read .*BraTS2021_00002_t2.nii.gz: .*orthonormal",
    ),
    "far more pixels than it can have": (
        "KvasirSEG",
        lambda root: (root / "images/cju1.jpg").write_bytes(_huge()),
        "cju1.jpg claims more pixels than can be right",
    ),
    "lesions off the grid": (
        "ISLES2022",
        lambda root: layouts.write(
            layouts.volume(layouts.brain(1, layouts.FLAIR_SHAPE, np.float32), origin=(1e4, 0, 0)),
            next(root.glob("rawdata/sub-strokecase0004/ses-0001/anat/*_FLAIR.nii.gz")),
        ),
        "strokecase0004: no voxel of .*_msk.nii.gz lies on the grid of the FLAIR",
    ),
    "no mask of a stroke": (
        "ISLES2022",
        lambda root: shutil.rmtree(root / "derivatives" / "sub-strokecase0004"),
        "strokecase0004: .*sub-strokecase0004 has no msk",
    ),
}


def _dangle(path):
    path.unlink()
    path.symlink_to("../.git/annex/object")


def _deep_colours(path):
    path.unlink()
    deep = np.full((44, 52, 3), 4095, np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(path.with_suffix(".png")))


def _shear(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<hh", content, 252, 0, 2)  # the affine alone, not the quaternion
    struct.pack_into("<12f", content, 280, 1, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(gzip.compress(content))


def _huge():
    """A PNG whose header says 40000 x 40000 pixels."""
    made = io.BytesIO()
    Image.new("L", (1, 1)).save(made, format="PNG")
    content = bytearray(made.getvalue())
    struct.pack_into(">II", content, 16, 40000, 40000)
    struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    return bytes(content)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def _relabel(path, value):
    array, image = read(path)
    array = array.astype(np.float32)
    array[0, 0, 0] = value
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


@pytest.mark.parametrize("what", BREAKS)
def test_a_bad_source_is_one_line_and_leaves_nothing(tmp_path, capsys, what):
    name, spoil, message = BREAKS[what]
    source, raw = tmp_path / "source", tmp_path / "raw"
    source.mkdir()
    layouts.LAYOUTS[name](source)
    spoil(source)
    with pytest.raises(ValueError, match=message) as raised:
        convert(name, source, raw)
    assert "--skip-bad" in str(raised.value) and len(str(raised.value).splitlines()) == 1
    assert not raw.exists() or not list(raw.iterdir())
    made = convert(name, source, raw, skip_bad=True)
    assert made.skipped and made.training >= 1
    images = list((made.folder / "imagesTr").iterdir())
    channels = len(json.loads((made.folder / "dataset.json").read_text())["channel_names"])
    files = channels if made.folder.joinpath("imagesTr").glob("*.nii.gz") and images[0].suffix == ".gz" else 1
    assert len(images) == made.training * files


def test_labels_that_float32_has_rounded(tmp_path):
    """As they come out of a resampling."""
    source = tmp_path / "source"
    layouts.synapse(source)
    label = source / "label" / "label0002.nii.gz"
    before, image = read(label)
    changed = sitk.GetImageFromArray(np.where(before == 1, np.float32(0.9999999), before.astype(np.float32)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(label))
    made = convert("Synapse", source, tmp_path / "raw")
    found, _ = read(made.folder / "labelsTr" / "synapse_0002.nii.gz")
    np.testing.assert_array_equal(found, before)


def test_a_volume_that_is_called_compressed_and_is_not(tmp_path):
    """It is not cut off; what nnU-Net gets is compressed, as its other reader, nibabel's, needs it."""
    source = tmp_path / "source"
    layouts.synapse(source)
    paths = source / "img" / "img0002.nii.gz", source / "label" / "label0002.nii.gz"
    before = [read(path)[0] for path in paths]
    for path in paths:
        path.write_bytes(gzip.decompress(path.read_bytes()))
    folder = convert("Synapse", source, tmp_path / "raw").folder
    made = folder / "imagesTr" / "synapse_0002_0000.nii.gz", folder / "labelsTr" / "synapse_0002.nii.gz"
    for path, array in zip(made, before, strict=True):
        np.testing.assert_array_equal(read(path)[0], array)
        assert gzip.decompress(path.read_bytes())


def test_interrupted_leaves_nothing(tmp_path):
    source, raw = tmp_path / "source", tmp_path / "raw"
    source.mkdir()
    layouts.kvasir_seg(source)

    def stopped(work, count):
        yield next(iter(work))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_dataset(KvasirSEG(), source, raw, workers=1, progress=stopped)
    assert not list(raw.iterdir())
