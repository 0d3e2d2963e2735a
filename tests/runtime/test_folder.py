"""Missing and altered files of an ONNX model are named."""

import json

import pytest

from nnunet_kd.runtime.folder import read_model


def test_missing_and_altered_files_are_named(onnx_copy):
    network = onnx_copy / "fold_1.onnx"
    whole = network.read_bytes()
    network.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"has been altered: fold_1\.onnx is not the file that was exported"):
        read_model(onnx_copy)
    network.unlink()
    with pytest.raises(ValueError, match=r"is incomplete: fold_1\.onnx is missing"):
        read_model(onnx_copy)
    network.write_bytes(whole)
    read_model(onnx_copy)
    description = json.loads((onnx_copy / "model.json").read_text())
    (onnx_copy.parent / "evil.onnx").write_bytes(whole)
    for change, message in (
        (
            {"files": {**description["files"], "../evil.onnx": description["files"]["fold_1.onnx"]}},
            "outside its folder",
        ),
        ({"networks": ["../evil.onnx"]}, r"does not list \.\./evil\.onnx"),
        ({"format": 2}, "has format 2, but this version of nnunet_kd reads format 1"),
        ({"files": None}, "is damaged"),
        ({"patch_size": [10**9, 10**9, 10**9]}, "is damaged: patch_size is"),
        ({"patch_size": [-4, 4, 4]}, "is damaged: patch_size is"),
        ({"patch_size": "large"}, "is damaged: patch_size is"),
        ({"mirroring": [0, 7]}, "is damaged: mirroring is"),
        ({"mirroring": [0] * 40}, "an axis is mirrored twice"),
        ({"networks": []}, "there is no network"),
    ):
        (onnx_copy / "model.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(ValueError, match=message):
            read_model(onnx_copy)
    (onnx_copy / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*model\.json"):
        read_model(onnx_copy)
    (onnx_copy / "model.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no model in .* Export one: nnunet_kd export onnx -m .* -o NEW_FOLDER"
    ):
        read_model(onnx_copy)  # it has plans.json, as a results folder
    with pytest.raises(FileNotFoundError, match=r"Export one: nnunet_kd export onnx -d ID -tr TRAINER -o .*none"):
        read_model(onnx_copy / "none")
