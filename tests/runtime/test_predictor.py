"""An ONNX model predicts what nnU-Net's own predictor predicts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.cli import main
from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.trained import read_trained
from nnunet_kd.runtime.cases import find_cases
from nnunet_kd.runtime.engines import ENGINES
from nnunet_kd.runtime.folder import read_model, write_description
from nnunet_kd.runtime.model import Model
from nnunet_kd.runtime.predictor import predict_cases
from tests.students import results
from tests.training import variants

CONFIGURATIONS = ("3d_fullres", "2d")


def stock_predictor(model, folds=(0, 1), mirroring=True, step_size=0.5):
    predictor = nnUNetPredictor(step_size, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    return predictor


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("mirroring", "step_size"), [(True, 0.5), (False, 0.3)])
def test_logits_are_those_of_nnunets_predictor(
    students, onnx_models, single_precision, configuration, engine, mirroring, step_size
):
    """The case needs several windows; two folds and all mirrored copies are averaged."""
    model = results(students, configuration=configuration)
    ours = Model(onnx_models[configuration], engine, 1, step_size, mirroring)
    patch = ours.model.patch_size
    shape = (3, *(size + 5 for size in patch)) if len(patch) == 3 else (3, 2, *(size + 5 for size in patch))
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stock = stock_predictor(model, mirroring=mirroring, step_size=step_size)
    expected = stock.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float().numpy()
    found = ours.logits(data)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.999


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_files_are_those_of_nnunets_command(students, onnx_models, single_precision, configuration, tmp_path, capsys):
    """Compare segmentations, their geometry, probabilities, ``dataset.json`` and ``plans.json``."""
    out = tmp_path / "ours"
    words = ("-m", str(onnx_models[configuration]), "-i", str(students.raw / "imagesTs"), "-o", str(out))
    assert main(["predict", *words, "--save_probabilities", "--threads", "1"]) == 0
    assert "1 cases in" in capsys.readouterr().out
    stock = stock_predictor(results(students, configuration=configuration))
    expected = tmp_path / "stock"
    expected.mkdir()
    stock.predict_from_files_sequential(str(students.raw / "imagesTs"), str(expected), save_probabilities=True)
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in out.iterdir()) == [n for n in names if n != "predict_from_raw_data_args.json"]
    for name in names:
        if name.endswith(".nii.gz"):
            assert (read(out / name) == read(expected / name)).mean() >= 0.999
            ours, theirs = (sitk.ReadImage(str(folder / name)) for folder in (out, expected))
            for geometry in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
                assert getattr(ours, geometry)() == getattr(theirs, geometry)()
        elif name.endswith(".npz"):
            pair = [np.load(folder / name)["probabilities"] for folder in (out, expected)]
            np.testing.assert_allclose(*pair, atol=1e-4)
        elif name in ("dataset.json", "plans.json"):
            assert json.loads((out / name).read_text()) == json.loads((expected / name).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["use_regions", "use_ignore_label"])
def test_regions_and_an_ignore_label(workspace, single_precision, variant, tmp_path):
    """A stock teacher can be exported like any student."""
    if variant == "use_regions":
        variants.use_regions(workspace)
    else:
        labels = {**workspace.dataset_json["labels"], "ignore": 3}
        (workspace.teacher / "dataset.json").write_text(json.dumps({**workspace.dataset_json, "labels": labels}))
    export_onnx(read_trained(workspace.teacher, ["0"]), tmp_path / "model")
    ours = Model(tmp_path / "model", "onnxruntime", 1)
    cases = find_cases(workspace.raw / "imagesTs", tmp_path / "ours", ".nii.gz", 3)
    predict_cases(ours, cases)
    (tmp_path / "stock").mkdir()
    stock_predictor(workspace.teacher, (0,)).predict_from_files_sequential(
        str(workspace.raw / "imagesTs"), str(tmp_path / "stock")
    )
    name = f"{cases[0].name}.nii.gz"
    assert (read(tmp_path / "ours" / name) == read(tmp_path / "stock" / name)).mean() >= 0.999


def test_plans_beside_a_model_build_nothing(onnx_copy, tmp_path):
    """The networks are in ONNX, so the architecture that the plans name is ignored."""
    description, plans, _ = read_model(onnx_copy)
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"]["network_class_name"] = "subprocess.Popen"
            configuration["architecture"]["arch_kwargs"] |= {
                "nonlin": "os.mkdir",
                "args": ["mkdir", str(tmp_path / "x")],
            }
    (onnx_copy / "plans.json").write_text(json.dumps(plans))
    write_description(onnx_copy, description)
    Model(onnx_copy, ENGINES[0], 1)
    assert not (tmp_path / "x").exists()
    cannot, unknown = (
        r"plans\.json contains plans that nnU-Net cannot use",
        r"plans\.json asks for the preprocessor 'os'",
    )
    for change, message in (
        ({"inherits_from": "nothing"}, cannot + ": there is no configuration nothing$"),
        ({"inherits_from": None, "spacing": [1, 0, 1]}, cannot + ": spacing must be two or three sizes above 0"),
        (
            {"spacing": [1, 1, 1], "preprocessor_name": "os"},
            unknown + ", but prediction without PyTorch knows only Def",
        ),
    ):
        plans["configurations"][description.configuration].update(change)
        (onnx_copy / "plans.json").write_text(json.dumps(plans))
        write_description(onnx_copy, description)
        with pytest.raises(ValueError, match=message):
            Model(onnx_copy, ENGINES[0], 1)


def test_a_network_no_engine_can_read(onnx_copy):
    description, _, _ = read_model(onnx_copy)
    (onnx_copy / "fold_0.onnx").write_bytes(b"no network")
    write_description(onnx_copy, description)
    for engine in ENGINES:
        with pytest.raises(ValueError, match=rf"{engine} cannot read .*fold_0\.onnx"):
            Model(onnx_copy, engine, 1)


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_voxel_size_of_tiff_files_is_kept(onnx_models, tmp_path, probabilities):
    """nnU-Net keeps it in a JSON file beside the image."""
    model = Model(onnx_models["3d_fullres"], threads=1)
    model.pipeline = replace(model.pipeline, reader="Tiff3DIO", file_ending=".tif")
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shape = model.model.patch_size
    for channel in range(3):
        values = np.random.default_rng(channel).standard_normal(shape).astype(np.float32)
        tifffile.imwrite(images / f"c_{channel:04d}.tif", values)
    (images / "c.json").write_text('{"spacing": [5.0, 1.0, 1.0]}')
    predict_cases(model, find_cases(images, out, ".tif", 3), probabilities)
    more = ["c.npz", "c.pkl"] if probabilities else []
    assert sorted(path.name for path in out.iterdir()) == sorted(["c.json", "c.tif", *more])
    assert json.loads((out / "c.json").read_text()) == {"spacing": [5.0, 1.0, 1.0]}
    assert tifffile.imread(out / "c.tif").shape == tuple(shape)
