"""An ONNX model predicts what nnU-Net's own predictor predicts."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.cli import main
from nnunet_kd.deploy import predictor as predictor_file
from nnunet_kd.deploy.engines import ENGINES, choose_engine
from nnunet_kd.deploy.folder import read_model
from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.predictor import OnnxPredictor, find_cases
from nnunet_kd.deploy.trained import read_trained
from tests.conftest import make_trainer
from tests.deploy.conftest import results
from tests.training import variants

CONFIGURATIONS = ("3d_fullres", "2d")


def stock_predictor(model, folds=(0, 1), mirroring=True, step_size=0.5):
    predictor = nnUNetPredictor(step_size, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    return predictor


@pytest.fixture
def single_precision(monkeypatch):
    """Let nnU-Net's predictor sum in single precision, as ours does.

    In half precision its weights vanish in the corners of a patch, where it then has no logits to compare with.
    """
    original = predict_from_raw_data.compute_gaussian
    exact = partial(original, dtype=torch.float32)
    exact.cache_clear = original.cache_clear
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", exact)
    monkeypatch.setattr(torch, "half", torch.float32)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("mirroring", "step_size"), [(True, 0.5), (False, 0.3)])
def test_logits_are_those_of_nnunets_predictor(
    students, onnx_models, single_precision, configuration, engine, mirroring, step_size
):
    """Two folds, several windows, all mirrored copies."""
    model = results(students, configuration=configuration)
    ours = OnnxPredictor(onnx_models[configuration], engine, 1, step_size, mirroring)
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
    """Segmentation, its geometry and probabilities; dataset.json and plans.json beside them."""
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


def test_options_reach_the_predictor(students, onnx_models, tmp_path, monkeypatch):
    made = []

    class Recorded(OnnxPredictor):
        def __init__(self, *words):
            super().__init__(*words)
            made.append((words[1:], len(list(self._places([2 * size for size in self.model.patch_size])))))

    monkeypatch.setattr(predictor_file, "OnnxPredictor", Recorded)
    words = ("predict", "-m", str(onnx_models["3d_fullres"]), "-i", str(students.raw / "imagesTs"))
    options = ("--threads", "1", "--engine", "onnxruntime", "--disable_tta", "-step_size", "1")
    assert main([*words, "-o", str(tmp_path / "whole"), *options]) == 0
    assert main([*words, "-o", str(tmp_path / "half"), *options[:-2]]) == 0
    assert made == [(("onnxruntime", 1, 1.0, False), 8), (("onnxruntime", 1, 0.5, False), 27)]


@pytest.mark.parametrize("variant", ["use_regions", "use_ignore_label"])
def test_regions_and_an_ignore_label(workspace, single_precision, variant, tmp_path):
    """The stock teacher is exported as well as any student."""
    if variant == "use_regions":
        variants.use_regions(workspace)
    else:
        labels = {**workspace.dataset_json["labels"], "ignore": 3}
        (workspace.teacher / "dataset.json").write_text(json.dumps({**workspace.dataset_json, "labels": labels}))
    export_onnx(read_trained(workspace.teacher, ["0"]), tmp_path / "model")
    ours = OnnxPredictor(tmp_path / "model", "onnxruntime", 1)
    cases = find_cases(workspace.raw / "imagesTs", tmp_path / "ours", ".nii.gz", 3)
    ours.predict(cases)
    (tmp_path / "stock").mkdir()
    stock_predictor(workspace.teacher, (0,)).predict_from_files_sequential(
        str(workspace.raw / "imagesTs"), str(tmp_path / "stock")
    )
    name = f"{cases[0].name}.nii.gz"
    assert (read(tmp_path / "ours" / name) == read(tmp_path / "stock" / name)).mean() >= 0.999


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_other_networks(workspace, tmp_path, configuration):
    """DRA-UNet, which only this package can build, with its batch normalisation and free spatial axes."""
    from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
    from tests.conftest import SHORT

    assert main(["plan", "-d", "598", "--network", "dra_unet"]) == 0
    plans = json.loads((workspace.preprocessed / "nnUNetPlans_dra_unet_r4.json").read_text())
    plans["nnunet_kd"]["training"] = {**SHORT, "num_epochs": 1}
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace, configuration=configuration)
    trainer.run_training()
    model = read_trained(workspace.results / f"nnUNetTrainerNoKD__nnUNetPlans_dra_unet_r4__{configuration}", ["0"])
    made = export_onnx(model, tmp_path / "model")
    assert made.multiples is not None and made.difference < 1e-4
    data = np.random.default_rng(0).normal(size=(3, 3, 30, 30)).astype(np.float32)
    assert np.isfinite(OnnxPredictor(tmp_path / "model", choose_engine("auto"), 1).logits(data)).all()


@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.7), ("int8", 0.6)])
def test_smaller_weights_and_what_they_cost(students, onnx_models, tmp_path, precision, most, capsys, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(students.root / name))
    cases = ("--images", str(students.raw / "imagesTr"), "--labels", str(students.raw / "labelsTr"))
    words = ("-d", "598", "-tr", "nnUNetTrainerNoKD", "-f", "0", "-o", str(tmp_path / "small"), *cases)
    assert main(["export", "onnx", *words, "--precision", precision]) == 0
    assert f"{precision} 0." in capsys.readouterr().out
    description, _, _ = read_model(tmp_path / "small")
    assert description.precision == precision and set(description.dice) == {"fp32", precision}
    images, labels, found = str(students.raw / "imagesTr"), str(students.raw / "labelsTr"), str(tmp_path / "found")
    assert main(["predict", "-m", str(tmp_path / "small"), "-i", images, "-o", found]) == 0
    theirs = compute_metrics_on_folder(labels, found, None, SimpleITKIO(), ".nii.gz", [1, 2], None, 1)
    dice = [case["metrics"][label]["Dice"] for case in theirs["metric_per_case"] for label in (1, 2)]
    assert description.dice[precision] == pytest.approx(np.nanmean(dice)) and len(dice) == 12
    size, whole = (
        (folder / "fold_0.onnx").stat().st_size for folder in (tmp_path / "small", onnx_models["3d_fullres"])
    )
    assert size < most * whole
    predictor = OnnxPredictor(tmp_path / "small", "onnxruntime", 1, mirroring=False)
    image = np.random.default_rng(0).normal(size=(3, *description.patch_size)).astype(np.float32)
    exact = OnnxPredictor(onnx_models["3d_fullres"], "onnxruntime", 1, mirroring=False)
    exact._engines = exact._engines[:1]
    difference = np.abs(predictor.logits(image) - exact.logits(image)).max() / np.abs(exact.logits(image)).max()
    assert 0 < difference < (0.02 if precision == "fp16" else 0.5)


def test_description_of_a_model(onnx_models):
    description, plans, dataset_json = read_model(onnx_models["3d_fullres"])
    assert description.networks == ["fold_0.onnx", "fold_1.onnx"] and description.opset == 18
    assert description.difference < 1e-4 and description.dice is None
    assert description.multiples == [4, 8, 8] or all(n in (2, 4, 8) for n in description.multiples)
    assert plans["plans_name"] == "nnUNetPlans" and dataset_json["numTraining"] == 6
    assert description.provenance["trainer"] == "nnUNetTrainerNoKD"


# ---- what is wrong with a model


@pytest.fixture
def copy(onnx_models, tmp_path):
    shutil.copytree(onnx_models["3d_fullres"], tmp_path / "model")
    return tmp_path / "model"


def test_missing_and_altered_files_are_named(copy):
    network = copy / "fold_1.onnx"
    whole = network.read_bytes()
    network.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"has been altered: fold_1\.onnx is not the file that was exported"):
        read_model(copy)
    network.unlink()
    with pytest.raises(ValueError, match=r"is not whole: fold_1\.onnx is missing"):
        read_model(copy)
    network.write_bytes(whole)
    read_model(copy)
    description = json.loads((copy / "model.json").read_text())
    (copy.parent / "evil.onnx").write_bytes(whole)
    for change, message in (
        (
            {"files": {**description["files"], "../evil.onnx": description["files"]["fold_1.onnx"]}},
            "outside its folder",
        ),
        ({"networks": ["../evil.onnx"]}, r"does not list \.\./evil\.onnx"),
        ({"format": 2}, "is of format 2, this nnunet_kd reads 1"),
        ({"files": None}, "is damaged"),
        ({"patch_size": [10**9, 10**9, 10**9]}, "is damaged: patch_size is"),
        ({"patch_size": [-4, 4, 4]}, "is damaged: patch_size is"),
        ({"patch_size": "large"}, "is damaged: patch_size is"),
        ({"mirroring": [0, 7]}, "is damaged: mirroring is"),
        ({"mirroring": [0] * 40}, "an axis is mirrored twice"),
        ({"networks": []}, "there is no network"),
    ):
        (copy / "model.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(ValueError, match=message):
            read_model(copy)
    (copy / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*model\.json"):
        read_model(copy)
    (copy / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no model in .* Make one: nnunet_kd export onnx"):
        read_model(copy)


def test_plans_beside_a_model_build_nothing(copy, tmp_path):
    """The networks are ONNX: what the plans would have nnU-Net build is not looked at."""
    from nnunet_kd.deploy.folder import write_description

    description, plans, _ = read_model(copy)
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"]["network_class_name"] = "subprocess.Popen"
            configuration["architecture"]["arch_kwargs"] |= {
                "nonlin": "os.mkdir",
                "args": ["mkdir", str(tmp_path / "x")],
            }
    (copy / "plans.json").write_text(json.dumps(plans))
    write_description(copy, description)
    OnnxPredictor(copy, ENGINES[0], 1)
    assert not (tmp_path / "x").exists()
    for change in ({"preprocessor_name": "os"}, {"preprocessor_name": "NoSuchClass"}, {"inherits_from": "nothing"}):
        plans["configurations"][description.configuration].update(change)
        (copy / "plans.json").write_text(json.dumps(plans))
        write_description(copy, description)
        with pytest.raises(ValueError, match=r"plans\.json holds no plans nnU-Net can use"):
            OnnxPredictor(copy, ENGINES[0], 1)


def test_a_network_no_engine_can_read(copy):
    from nnunet_kd.deploy.folder import write_description

    description, _, _ = read_model(copy)
    (copy / "fold_0.onnx").write_bytes(b"no network")
    write_description(copy, description)
    for engine in ENGINES:
        with pytest.raises(ValueError, match=rf"{engine} cannot read .*fold_0\.onnx"):
            OnnxPredictor(copy, engine, 1)


def test_a_cascade_is_not_exported(workspace, tmp_path):
    plans = workspace.plans("nnUNetPlans")
    variants.use_cascade(workspace, plans, "nnUNetTrainerNoKD")
    folder = workspace.results / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    with pytest.raises(NotImplementedError, match="take no segmentations by 3d_lowres, .* Export it for stock"):
        export_onnx(read_trained(folder, ["0"]), tmp_path / "model")
    assert not list(tmp_path.glob("*model*"))


def test_other_logits_than_pytorchs_are_not_written(students, tmp_path, monkeypatch):
    from nnunet_kd.deploy import onnx

    monkeypatch.setitem(onnx.TOLERANCE, "fp32", 1e-12)
    with pytest.raises(ValueError, match=r"fold_0\.onnx gives other logits than PyTorch"):
        export_onnx(read_trained(results(students), ["0"]), tmp_path / "model")
    assert not list(tmp_path.iterdir())


# ---- what is wrong with the images


@pytest.fixture
def images(students, tmp_path):
    """Three cases."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (students.raw / "imagesTs").glob("*.nii.gz"):
        for name in ("a", "b", "c"):
            shutil.copy(path, folder / f"{name}{path.name[-12:]}")
    return folder


def predict(model, images, out, *words):
    return main(["predict", "-m", str(model), "-i", str(images), "-o", str(out), "--disable_tta", *words])


def test_one_file_parts_and_going_on(onnx_models, images, tmp_path, capsys):
    model, out = onnx_models["3d_fullres"], tmp_path / "out"
    assert predict(model, images, out, "-num_parts", "2", "-part_id", "1") == 0
    assert [path.name for path in out.glob("*.nii.gz")] == ["b.nii.gz"]
    before = (out / "b.nii.gz").stat().st_mtime_ns
    assert predict(model, images, out, "--continue_prediction") == 0
    assert "2 cases in" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert (out / "b.nii.gz").stat().st_mtime_ns == before
    assert predict(model, images, out, "--continue_prediction") == 0
    assert "nothing to predict" in capsys.readouterr().out
    assert predict(model, images, out, "--continue_prediction", "--save_probabilities") == 0
    assert sorted(path.name for path in out.glob("*.npz")) == ["a.npz", "b.npz", "c.npz"]
    assert predict(model, images / "a_0000.nii.gz", tmp_path / "one.nii.gz") == 0
    np.testing.assert_array_equal(read(tmp_path / "one.nii.gz"), read(out / "a.nii.gz"))
    assert predict(model, images / "a_0000.nii.gz", tmp_path / "folder") == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.nii.gz"]


def test_bad_images_are_named_and_what_was_done_stays(onnx_models, images, tmp_path, capsys):
    model, out = onnx_models["3d_fullres"], tmp_path / "out"
    (images / "b_0001.nii.gz").write_bytes(b"no image")
    assert predict(model, images, out) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nnunet_kd: case b: cannot read ") and "b_0001.nii.gz" in error
    assert [path.name for path in out.glob("*.nii.gz")] == ["a.nii.gz"] and not list(out.glob(".unfinished*"))
    (images / "b_0001.nii.gz").unlink()
    assert predict(model, images, out) == 1
    assert "case b: there is no" in capsys.readouterr().err
    shutil.copy(images / "a_0001.nii.gz", images / "b_0001.nii.gz")
    shutil.copy(images / "a_0001.nii.gz", images / "b_0007.nii.gz")
    assert predict(model, images, out) == 1
    assert "b_0007.nii.gz is channel 7, there should be 3" in capsys.readouterr().err


def test_interrupted_leaves_whole_files_only(onnx_models, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    export = predictor_file.export_prediction_from_logits
    written = []

    def stopped(*arguments, **options):
        export(*arguments, **options)
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(predictor_file, "export_prediction_from_logits", stopped)
    assert predict(onnx_models["3d_fullres"], images, out) == 130
    assert capsys.readouterr().err.endswith("nnunet_kd: stopped\n")
    assert [path.name for path in out.glob("*.nii.gz")] == ["a.nii.gz"] and not list(out.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "tensorrt"), "an engine is one of auto, openvino, onnxruntime, got 'tensorrt'"),
        (("-step_size", "0"), "the step size is above 0 and at most 1, got 0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("-part_id", "1"), "-part_id must be from 0 to 0, got 1"),
        (("-i", "nowhere"), "there is no nowhere"),
        (("-i", "EMPTY"), "has no images named CASE_0000.nii.gz"),
        (("-i", "FILE"), "does not end with .nii.gz"),
        (("-m", "nowhere"), "there is no model in nowhere"),
    ],
)
def test_wrong_arguments(onnx_models, images, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "image.png").touch()
    places = {"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "image.png")}
    out = tmp_path / "out"
    assert predict(onnx_models["3d_fullres"], images, out, *(places.get(word, word) for word in words)) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_engines_that_are_not_installed(monkeypatch, capsys, onnx_models, images, tmp_path):
    from nnunet_kd.deploy import engines

    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "openvino" else True)
    assert choose_engine("auto") == "onnxruntime"
    with pytest.raises(ImportError, match=r"openvino is not installed: pip install 'nnunet_kd\[openvino\]'"):
        choose_engine("openvino")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"no engine is installed: pip install 'nnunet_kd\[onnx\]'"):
        choose_engine("auto")
    assert predict(onnx_models["2d"], images, tmp_path / "out") == 1
    assert capsys.readouterr().err == "nnunet_kd: no engine is installed: pip install 'nnunet_kd[onnx]'\n"


def test_the_window_needs_no_torch(onnx_models, monkeypatch):
    """Between preprocessing and export nothing of PyTorch runs."""
    predictor = OnnxPredictor(onnx_models["3d_fullres"], "onnxruntime", 1)
    data = np.zeros((3, *(size + 3 for size in predictor.model.patch_size)), np.float32)

    class Nothing:
        def __getattr__(self, name):
            raise AssertionError(f"torch.{name} was used")

    monkeypatch.setattr(predictor_file, "torch", Nothing())
    calls = []
    monkeypatch.setattr(torch.Tensor, "__new__", lambda *_: calls.append(1))
    assert np.isfinite(predictor.logits(data)).all() and not calls


def test_a_residual_encoder_has_free_axes_too(tmp_path):
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    from nnunet_kd.deploy.onnx import _check, _convert

    norm = {"norm_op": torch.nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}, "nonlin": torch.nn.LeakyReLU}
    widths, strides = [4, 8, 16], [[1, 1], [2, 2], [2, 2]]
    network = ResidualEncoderUNet(
        2, 3, widths, torch.nn.Conv2d, 3, strides, [1, 2, 2], 3, [1, 1], conv_bias=True, **norm
    )
    path = tmp_path / "network.onnx"
    assert _convert(network.eval(), 2, [16, 24], [4, 4], path) == [4, 4]
    assert _check(network, path, 2, [16, 24], [4, 4], "fp32") < 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_no_export(tmp_path, monkeypatch, value):
    from nnunet_kd.deploy import onnx

    network, path = torch.nn.Conv2d(2, 3, 1).eval(), tmp_path / "network.onnx"
    outputs = lambda image: np.full((len(image), 3, *image.shape[2:]), value, np.float32)  # noqa: E731
    monkeypatch.setattr(onnx, "open_engine", lambda *_, **__: outputs)
    with pytest.raises(ValueError, match=r"network\.onnx gives logits that are not finite"):
        onnx._check(network, path, 2, [16, 24], None, "fp16")


def test_a_network_that_needs_its_patch_size_keeps_it(tmp_path):
    from nnunet_kd.deploy.onnx import _check, _convert

    class OneSize(torch.nn.Conv2d):
        def forward(self, image):
            return super().forward(image) + torch.arange(24.0).expand(16, 24)

    network, path = OneSize(2, 3, 3, padding=1).eval(), tmp_path / "network.onnx"
    assert _convert(network, 2, [16, 24], [4, 4], path) is None
    assert _check(network, path, 2, [16, 24], None, "fp32") < 1e-5


KD_SAM = {"image_size": 64, "blocks": (1, 1, 1, 1), "embedding_channels": 32, "mlp_dim": 64, "num_heads": 4}
DMIF = {"image_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "global_attention": (1,)}
OURS = {
    "kd_sam.KDSAM": {**KD_SAM, "mask_channels": 4},
    "brainseg_dmif.BrainSegDMIF": {**DMIF, "window_size": 3, "out_channels": 32},
}


@pytest.mark.parametrize("name", OURS)
def test_networks_of_slices_are_exported(tmp_path, name):
    """With a free batch, for the patch size alone, which the sliding window has."""
    import pydoc

    from nnunet_kd.deploy.onnx import _check, _convert

    torch.manual_seed(0)
    network = pydoc.locate(f"nnunet_kd.networks.{name}")(2, 3, **OURS[name]).eval()
    path = tmp_path / "network.onnx"
    assert _convert(network, 2, [32, 48], [16, 16], path) is None
    assert _check(network, path, 2, [32, 48], None, "fp32") < 1e-4


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_voxel_size_of_tiff_files_comes_along(onnx_models, tmp_path, probabilities):
    """nnU-Net keeps it in a file beside them."""
    predictor = OnnxPredictor(onnx_models["3d_fullres"], choose_engine("auto"), 1)
    predictor.dataset_json["file_ending"] = ".tif"
    predictor._manager.plans["image_reader_writer"] = "Tiff3DIO"
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shape = predictor.model.patch_size
    for channel in range(predictor.channels):
        values = np.random.default_rng(channel).standard_normal(shape).astype(np.float32)
        tifffile.imwrite(images / f"c_{channel:04d}.tif", values)
    (images / "c.json").write_text('{"spacing": [5.0, 1.0, 1.0]}')
    predictor.predict(find_cases(images, out, ".tif", predictor.channels), probabilities)
    more = ["c.npz", "c.pkl"] if probabilities else []
    assert sorted(path.name for path in out.iterdir()) == sorted(["c.json", "c.tif", *more])
    assert json.loads((out / "c.json").read_text()) == {"spacing": [5.0, 1.0, 1.0]}
    assert tifffile.imread(out / "c.tif").shape == tuple(shape)
