"""Prediction never overwrites its inputs, and its messages name the file that is wrong."""

import gzip
import json
import os
import re
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_kd.cli import main
from nnunet_kd.runtime.cases import PredictionCase, find_cases, prepare_case
from nnunet_kd.runtime.model import Model
from nnunet_kd.runtime.predictor import predict_cases


def predict(model, images, out, *words):
    fast = ("--disable_tta", "--engine", "onnxruntime", "--threads", "1")
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(out), *fast, *words])


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """Image files under every name that can lead to them, including links."""
    monkeypatch.chdir(tmp_path)
    for name in ("scans", "out", "data/imagesTs", "channels"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("scan", "y_0000", "y_0000_0000", "z_0000", "z"):
        (tmp_path / "scans" / f"{name}.nii.gz").write_bytes(b"voxels")
    (tmp_path / "scans" / "z.npz").write_bytes(b"numbers")
    for channel in range(3):
        (tmp_path / "channels" / f"c_000{channel}.nii.gz").write_bytes(b"voxels")
    (tmp_path / "data" / "imagesTs" / "z_0000.nii.gz").write_bytes(b"voxels")
    (tmp_path / "data" / "dataset.json").write_text("{}")
    (tmp_path / "linked").symlink_to("scans")
    os.link("scans/scan.nii.gz", "out/scan.nii.gz")
    os.link("scans/scan.nii.gz", "scans/SCAN.nii.gz")  # the view of a file system that ignores case
    (tmp_path / "out" / "link.nii.gz").symlink_to("../scans/scan.nii.gz")
    return tmp_path


@pytest.mark.parametrize(
    ("images", "out", "named"),
    [
        ("scans/scan.nii.gz", "scans", "scans/scan.nii.gz"),
        ("scans/scan.nii.gz", "scans/scan.nii.gz", "scans/scan.nii.gz"),
        ("scans/scan.nii.gz", "scans/SCAN.nii.gz", "scans/SCAN.nii.gz"),
        ("scans/scan.nii.gz", "out", "out/scan.nii.gz"),
        ("scans/scan.nii.gz", "out/link.nii.gz", "out/link.nii.gz"),
        ("scans/scan.nii.gz", "linked", "linked/scan.nii.gz"),
        ("scans/scan.nii.gz", "out/../scans", "out/../scans/scan.nii.gz"),
        ("linked/scan.nii.gz", "ABSOLUTE/scans", "ABSOLUTE/scans/scan.nii.gz"),
        ("scans/z_0000.nii.gz", "scans", "scans/z.nii.gz"),  # not an input, but possibly a reference
        ("channels/c_0000.nii.gz", "channels/c_0001.nii.gz", "channels/c_0001.nii.gz"),
        (
            "scans",
            "linked",
            "linked/y_0000.nii.gz",
        ),  # the segmentation of y_0000_0000.nii.gz would overwrite an image of y
        ("scans", "scans", "scans/y_0000.nii.gz"),
        ("data/imagesTs", "data", "data/dataset.json"),
        ("data/imagesTs/.", "data/imagesTs/..", "data/imagesTs/../dataset.json"),
    ],
)
def test_no_input_is_written_over(onnx_models, scans, capsys, images, out, named):
    before = content_of(scans)
    images, out, named = (word.replace("ABSOLUTE", str(scans)) for word in (images, out, named))
    assert predict(onnx_models["3d_fullres"], images, out, "--save_probabilities") == 1
    error = capsys.readouterr().err.splitlines()[-1]  # for a folder, the files that are left out come first
    assert error.startswith(f"nnunet_kd: cannot write {named}: it is ") and "one of the inputs" in error
    assert error.endswith(". Give another folder with -o")
    assert content_of(scans) == before


def test_parts_and_continuing_know_the_images_of_all(onnx_models, scans, capsys):
    for words in (("-num_parts", "3", "-part_id", "1"), ("--continue_prediction",)):
        assert predict(onnx_models["3d_fullres"], "scans", "scans", *words) == 1
        assert "cannot write scans/y_0000.nii.gz: it is one of the inputs" in capsys.readouterr().err


def test_probabilities_among_the_images(onnx_models, scans, capsys):
    (scans / "scans" / "z.nii.gz").unlink()
    assert predict(onnx_models["3d_fullres"], "scans/z_0000.nii.gz", "scans", "--save_probabilities") == 1
    assert "cannot write scans/z.npz: it is one of the inputs" in capsys.readouterr().err


def test_the_model_is_an_input(onnx_models, scans, capsys):
    shutil.copytree(onnx_models["3d_fullres"], "model")
    os.link("model/fold_0.onnx", "out/z.nii.gz")
    assert predict("model", "data/imagesTs", "out") == 1
    assert "out/z.nii.gz: it is the same as model/fold_0.onnx, one of the inputs" in capsys.readouterr().err


def test_the_predictor_itself_keeps_images(onnx_models, scans):
    model = Model(onnx_models["3d_fullres"], "onnxruntime", 1)
    case = PredictionCase("scan", (scans / "scans" / "scan.nii.gz",), scans / "linked" / "scan")
    with pytest.raises(ValueError, match=r"linked/scan\.nii\.gz: it is the same as .*scans/scan\.nii\.gz, one of the"):
        predict_cases(model, [case])
    assert (scans / "scans" / "scan.nii.gz").read_bytes() == b"voxels"


def test_segmentations_beside_images_of_other_names(students, onnx_models, tmp_path, capsys):
    """They have nnU-Net's names; existing ones are not replaced, and a resumed prediction skips them."""
    images = tmp_path / "images"
    shutil.copytree(students.raw / "imagesTs", images)
    before, model = content_of(images), onnx_models["3d_fullres"]
    assert predict(model, images, images) == 0
    segmentation = images / "head_006.nii.gz"
    after = content_of(images)
    names = {segmentation, images / "dataset.json", images / "plans.json"}
    assert after.keys() - before.keys() == names and before.items() <= after.items()
    capsys.readouterr()
    assert predict(model, images, images, "--continue_prediction") == 0
    assert capsys.readouterr().out == "nothing to predict\n"
    assert predict(model, images, images) == 1
    assert f"cannot write {segmentation}: it is one of the inputs" in capsys.readouterr().err
    segmentation.unlink()
    assert predict(model, images, images) == 0  # dataset.json and plans.json are those of the model
    assert content_of(images) == after
    assert (
        predict(model, images / "head_006_0000.nii.gz", segmentation) == 0
    )  # a file that is named explicitly is replaced


# ---- what is wrong with an image


def _case(students, folder):
    folder.mkdir()
    for path in (students.raw / "imagesTs").glob("*.nii.gz"):
        shutil.copy(path, folder / f"b{path.name[-12:]}")
    return folder


def _shear(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<hh", content, 252, 0, 2)  # change the affine but not the quaternion
    struct.pack_into("<12f", content, 280, 1, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    path.write_bytes(gzip.compress(content))


def _changed(change):
    def make(path):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(change(image), str(path))

    return make


def _wider(image):
    image.SetSpacing((1.4, 1.2, 2.5))
    return image


FAULTS = {
    "sheared": (
        _shear,
        r"cannot read FILE: the axes in its header are not orthonormal \(it is sheared\), which",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot read FILE: it is truncated or damaged$"),
    "no image": (lambda path: path.write_bytes(400 * b"x"), "cannot read FILE: Unable to determine ImageIO reader for"),
    "other size": (_changed(lambda image: image[1:]), r"FILE has [\dx ]+ voxels, but .*_0000.nii.gz has [\dx ]+$"),
    "other voxels": (
        _changed(_wider),
        "FILE has voxels of 2.5 x 1.2 x 1.4 mm, but .* of 2.5 x 1.2 x 1.3 mm$",
    ),
    "four dimensions": (
        _changed(lambda image: sitk.JoinSeries([image] * 3)),
        r"\S*b_0000.nii.gz, FILE, \S*b_0002.nii.gz have 5 channels, but the model takes 3 \(T1, T1C, FLAIR\)$",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_messages_say_what_is_wrong_with_which_image(students, onnx_models, tmp_path, kind):
    images = _case(students, tmp_path / "images")
    spoil, message = FAULTS[kind]
    path = images / "b_0001.nii.gz"
    spoil(path)
    model = Model(onnx_models["3d_fullres"], "onnxruntime", 1)
    (case,) = find_cases(images, tmp_path / "out", ".nii.gz", 3)
    with pytest.raises(ValueError, match="^case b: " + message.replace("FILE", re.escape(str(path)))) as raised:
        prepare_case(case, model.pipeline)
    assert len(str(raised.value).splitlines()) == 1


def test_all_channels_in_one_image_of_four_dimensions(students, onnx_models, tmp_path, capsys):
    """nnU-Net reads such an image but fails when it writes the segmentation."""
    images = sorted((students.raw / "imagesTs").glob("*.nii.gz"))
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(image)) for image in images]), str(path))
    assert predict(onnx_models["3d_fullres"], path, tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"nnunet_kd: case scan: cannot preprocess {path}: nnU-Net writes no segmentation of a 4-D image: save each "
        "channel as a 3-D image of its own, scan_0000.nii.gz and so on"
    )
    assert not (tmp_path / "out").exists()


COLOURS = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
CHANNELS = {
    4: "has 4 channels, but the model takes 3 (T1, T1C, FLAIR). Save it without transparency (alpha)",
    1: "has 1 channel, but the model takes 3 (T1, T1C, FLAIR)",
}


@pytest.mark.parametrize("channels", CHANNELS)
def test_an_image_with_other_channels_than_the_model(onnx_models, tmp_path, channels):
    model = Model(onnx_models["2d"], "onnxruntime", 1)
    pipeline = replace(model.pipeline, reader="NaturalImage2DIO", file_ending=".png")
    path = tmp_path / "picture.png"
    Image.fromarray(COLOURS[..., :channels].squeeze()).save(path)
    (case,) = find_cases(path, tmp_path / "out", ".png", 3)
    with pytest.raises(ValueError) as raised:
        prepare_case(case, pipeline)
    assert str(raised.value) == f"case picture: {path} {CHANNELS[channels]}"
    Image.fromarray(COLOURS[..., :3]).save(path)
    assert len(prepare_case(case, pipeline)[0]) == 3


def test_an_uncompressed_file_with_a_compressed_ending(students, onnx_models, tmp_path):
    """Some tools write such files; the prediction is the same."""
    images, model = _case(students, tmp_path / "images"), onnx_models["3d_fullres"]
    assert predict(model, images, tmp_path / "packed") == 0
    for path in images.iterdir():
        path.write_bytes(gzip.decompress(path.read_bytes()))
    assert predict(model, images, tmp_path / "unpacked") == 0
    one, other = (sitk.ReadImage(str(tmp_path / name / "b.nii.gz")) for name in ("packed", "unpacked"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
    assert json.loads((tmp_path / "unpacked" / "dataset.json").read_text())["file_ending"] == ".nii.gz"
