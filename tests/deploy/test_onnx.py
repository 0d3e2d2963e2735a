"""A student is exported as ONNX or refused before anything is written."""

import json

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_kd.cli import main
from nnunet_kd.deploy import onnx_network
from nnunet_kd.deploy.onnx import export_onnx
from nnunet_kd.deploy.trained import read_trained
from nnunet_kd.runtime.folder import read_model
from nnunet_kd.runtime.model import Model
from tests.conftest import make_trainer
from tests.students import results
from tests.training import variants

CONFIGURATIONS = ("3d_fullres", "2d")


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_other_networks(workspace, tmp_path, configuration):
    """DRA-UNet, which only this package can build, has batch normalisation and dynamic spatial axes."""
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
    assert np.isfinite(Model(tmp_path / "model", threads=1).logits(data)).all()


def test_int8_needs_images(tmp_path):
    with pytest.raises(ValueError, match="^int8 needs images to calibrate its layers: give .* with --calibration$"):
        export_onnx(None, tmp_path / "model", "int8")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.7), ("int8", 0.6)])
def test_smaller_weights_and_their_cost_in_dice(
    students, onnx_models, known_programs, tmp_path, precision, most, capsys, monkeypatch
):
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
    predictor = Model(tmp_path / "small", "onnxruntime", 1, mirroring=False)
    image = np.random.default_rng(0).normal(size=(3, *description.patch_size)).astype(np.float32)
    exact = Model(onnx_models["3d_fullres"], "onnxruntime", 1, mirroring=False)
    exact.engines = exact.engines[:1]
    difference = np.abs(predictor.logits(image) - exact.logits(image)).max() / np.abs(exact.logits(image)).max()
    assert 0 < difference < (0.02 if precision == "fp16" else 0.5)


def test_description_of_a_model(onnx_models):
    description, plans, dataset_json = read_model(onnx_models["3d_fullres"])
    assert description.networks == ["fold_0.onnx", "fold_1.onnx"] and description.opset == 18
    assert description.difference < 1e-4 and description.dice is None
    assert description.multiples == [4, 8, 8] or all(n in (2, 4, 8) for n in description.multiples)
    assert plans["plans_name"] == "nnUNetPlans" and dataset_json["numTraining"] == 6
    assert description.provenance["trainer"] == "nnUNetTrainerNoKD"


def test_a_cascade_is_not_exported(workspace, tmp_path):
    plans = workspace.plans("nnUNetPlans")
    variants.use_cascade(workspace, plans, "nnUNetTrainerNoKD")
    folder = workspace.results / "nnUNetTrainer__nnUNetPlans__3d_cascade_fullres"
    with pytest.raises(NotImplementedError, match="take no segmentations by 3d_lowres, .* Export it for stock"):
        export_onnx(read_trained(folder, ["0"]), tmp_path / "model")
    assert not list(tmp_path.glob("*model*"))


@pytest.mark.slow
def test_a_network_whose_logits_differ_from_pytorchs_is_not_written(students, known_programs, tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_network.TOLERANCE, "fp32", 1e-12)
    with pytest.raises(ValueError, match=r"fold_0\.onnx gives other logits than PyTorch"):
        export_onnx(read_trained(results(students), ["0"]), tmp_path / "model")
    assert not list(tmp_path.iterdir())
