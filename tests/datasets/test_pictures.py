"""Pictures of every kind come out as they look, or are refused: none becomes white or loses bits unnoticed."""

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image

from nnunet_kd.datasets.pictures import read_mask, read_picture, write_picture
from tests.datasets import layouts
from tests.datasets.converting import convert, read

RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 4096, (30, 40), dtype=np.uint16)  # of 12 bits
GREY = RANDOM.integers(0, 256, (30, 40), dtype=np.uint8)
COLOURS = RANDOM.integers(0, 256, (30, 40, 3), dtype=np.uint8)
OPAQUE = np.dstack([COLOURS, np.full((30, 40), 255, np.uint8)])
INSIDE = GREY > 127


def saved(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_values_to_nnunets_reader(tmp_path, ending):
    picture = read_picture(saved(tmp_path / f"grey.{ending}", DEEP), "L")
    np.testing.assert_array_equal(picture, DEEP)
    write_picture(picture, tmp_path / "case_0000.png")
    np.testing.assert_array_equal(NaturalImage2DIO().read_images([str(tmp_path / "case_0000.png")])[0][0, 0], DEEP)


KINDS = {  # what is saved, and what it looks like: grey, colours
    "1 bit": (INSIDE, 255 * INSIDE.astype(np.uint8), np.stack([255 * INSIDE.astype(np.uint8)] * 3, 2)),
    "grey": (GREY, GREY, np.stack([GREY] * 3, 2)),
    "opaque grey": (Image.fromarray(GREY).convert("LA"), GREY, np.stack([GREY] * 3, 2)),
    "colours": (COLOURS, np.asarray(Image.fromarray(COLOURS).convert("L")), COLOURS),
    "opaque colours": (OPAQUE, np.asarray(Image.fromarray(COLOURS).convert("L")), COLOURS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_what_it_looks_like(tmp_path, kind):
    array, grey, colours = KINDS[kind]
    path = saved(tmp_path / "picture.png", array)
    np.testing.assert_array_equal(read_picture(path, "L"), grey)
    np.testing.assert_array_equal(read_picture(path, "RGB"), colours)


def test_a_palette_is_what_it_looks_like(tmp_path):
    path = saved(tmp_path / "palette.png", Image.fromarray(COLOURS // 128 * 255).quantize(8))
    np.testing.assert_array_equal(read_picture(path, "RGB"), COLOURS // 128 * 255)


def _coloured(path, channels=3):
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([DEEP] * channels, 2), isVector=True), str(path))
    return path


def _glass(path):
    saved(path, np.dstack([COLOURS, GREY]))
    return path


def _see_through_palette(path):
    return saved(path, Image.fromarray(COLOURS).quantize(8), transparency=3)


def _print(path):
    return saved(path.with_suffix(".jpg"), Image.fromarray(COLOURS).convert("CMYK"))


def _stack(path):
    return saved(path.with_suffix(".tif"), GREY, save_all=True, append_images=[Image.fromarray(GREY)])


def _tiff(values, **options):
    def write(path):
        tifffile.imwrite(path.with_suffix(".tif"), values, **options)
        return path.with_suffix(".tif")

    return write


REFUSED = {
    "16-bit colours": (_coloured, "has more than 8 bits per channel, and nnU-Net reads colours of 8 bits"),
    "16-bit colours and alpha": (lambda path: _coloured(path, 4), "has more than 8 bits per channel"),
    "16-bit colours, TIFF": (_tiff(np.stack([DEEP] * 3, 2)), "has more than 8 bits per channel"),
    "half transparent": (_glass, r"is partly transparent, .*: save it without transparency \(alpha\)"),
    "transparent palette": (_see_through_palette, "is partly transparent"),
    "colours of print": (_print, "has pixels of the kind CMYK, but RGB or grey is expected: convert it"),
    "several": (_stack, "holds 2 pictures, but one is expected"),
    "below zero": (_tiff(DEEP.astype(np.int16) - 10), "has values from -10 to .*, but 0 to 65535 are expected"),
    "beyond 16 bits": (_tiff(DEEP.astype(np.int32) + 65000), "has values from 65.* to .*, but 0 to 65535"),
    "fractions": (_tiff(DEEP.astype(np.float32)), "has pixels of the kind F, but RGB or grey is expected"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_not_look_the_same_is_refused(tmp_path, kind):
    make, message = REFUSED[kind]
    path = make(tmp_path / "picture.png")
    for mode in ("L",) if kind in ("below zero", "beyond 16 bits") else ("L", "RGB"):
        with pytest.raises(ValueError, match=rf"^.*{path.name} {message}"):
            read_picture(path, mode)


def test_deep_grey_where_colours_are_expected(tmp_path):
    with pytest.raises(ValueError, match=r"grey\.png has more than 8 bits per channel"):
        read_picture(saved(tmp_path / "grey.png", DEEP), "RGB")


PALETTE = Image.fromarray(INSIDE.astype(np.uint8)).convert("P")
PALETTE.putpalette([0, 0, 0, 128, 0, 0])
WHITE_FIRST = Image.fromarray((~INSIDE).astype(np.uint8)).convert("P")
WHITE_FIRST.putpalette([255, 255, 255, 0, 0, 0])
MASKS = {
    "1 bit": INSIDE,
    "0 and 1": INSIDE.astype(np.uint8),
    "8 bits": 255 * INSIDE.astype(np.uint8),
    "16 bits": 65535 * INSIDE.astype(np.uint16),
    "colours": np.stack([255 * INSIDE.astype(np.uint8)] * 3, 2),
    "palette": PALETTE,
    "palette that begins with white": WHITE_FIRST,
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind(tmp_path, kind):
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "mask.png", MASKS[kind]), (30, 40)), INSIDE)


def test_a_palette_of_several_classes_is_no_mask(tmp_path):
    classes = Image.fromarray(GREY % 3).convert("P")
    classes.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    with pytest.raises(ValueError, match=r"mask\.png has the values 0, 38, 75\.\.\., expected are 0 and 255"):
        read_mask(saved(tmp_path / "mask.png", classes), (30, 40))


def test_the_greys_of_a_jpeg_whatever_it_is_called(tmp_path):
    inside = np.kron(np.eye(8), np.ones((13, 13))) > 0  # not in the blocks of a JPEG
    jpeg = saved(tmp_path / "mask.jpg", 255 * inside.astype(np.uint8), quality=50)
    disguised = jpeg.rename(tmp_path / "mask.png")
    assert len(np.unique(read_picture(disguised, "L"))) > 2
    np.testing.assert_array_equal(read_mask(disguised, (104, 104)), inside)


@pytest.mark.parametrize(
    ("name", "picture", "result"),
    [
        ("BUSI", "benign/benign (1).png", "benign_0001_0000.png"),
        ("FetalHeadHC18", "training_set/001_HC.png", "001_HC_0000.nii.gz"),
    ],
)
def test_a_deep_picture_in_a_data_set(tmp_path, name, picture, result):
    source = tmp_path / "source"
    source.mkdir()
    layouts.LAYOUTS[name](source)
    height, width = np.asarray(Image.open(source / picture).convert("L")).shape
    deep = RANDOM.integers(0, 4096, (height, width), dtype=np.uint16)
    saved(source / picture, deep)
    made = convert(name, source, tmp_path / "raw")
    np.testing.assert_array_equal(read(made.folder / "imagesTr" / result)[0], deep)
