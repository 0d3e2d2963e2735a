import json
import os
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_kd.evaluation.measure import Measurement, Model, _predict, measure_models


@pytest.mark.slow
def test_passes_per_case_are_patches_times_mirrored_copies(workspace, tmp_path):
    """The mean is over one case of a single patch and one of several."""
    images = sorted((workspace.raw / "imagesTr").glob("head_000_*.nii.gz"))
    for path in images:
        whole = sitk.ReadImage(str(path))
        for case, times in (("one", 1), ("long", 3)):
            longer = sitk.GetImageFromArray(np.tile(sitk.GetArrayFromImage(whole), (times, 1, 1)))
            longer.SetSpacing(whole.GetSpacing())
            sitk.WriteImage(longer, str(tmp_path / path.name.replace("head_000", case)))
    checkpoint = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    measured = {}
    for cases in (1, 5):
        measurement = Measurement(Model(checkpoint, "3d_fullres"), tmp_path, "cpu", cases)
        for number in range(len(measurement)):
            measurement.predict(number)
        measured[cases] = measurement.measured()

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(workspace.teacher), (0,))
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    windows = []
    for case in ("long", "one"):  # in the order of their names
        files = [str(tmp_path / path.name.replace("head_000", case)) for path in images]
        managers = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        data = preprocessor.run_case(files, None, *managers)[0]
        patch = predictor.configuration_manager.patch_size
        padded = [max(size, side) for size, side in zip(patch, data.shape[1:], strict=True)]
        windows.append(len(predictor._internal_get_sliding_window_slicers(padded)))
    assert windows[0] > windows[1] and len(predictor.allowed_mirroring_axes) == 3
    assert measured[1].passes == 8 * windows[0] and measured[1].cases == 1
    assert measured[5].passes == 8 * sum(windows) / 2 and measured[5].cases == 2
    assert measured[5].flops == measured[5].passes * measured[5].network.flops
    assert measured[5].network.parameters == sum(p.numel() for p in predictor.network.parameters())
    assert measured[5].seconds > 0 and measured[5].peak_bytes > 0


def test_a_folder_without_images(workspace, tmp_path):
    checkpoint = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(ValueError, match=f"there are no images in {tmp_path}"):
        Measurement(Model(checkpoint, "3d_fullres"), tmp_path, "cpu", 5)


def noted(number):
    """Replace the prediction of a case in a process of :func:`measure_models`."""
    with open(os.environ["TEST_MEASURE_LOG"], "a") as file:
        print(os.getpid(), number, file=file)
    _predict(number)


@pytest.mark.slow
def test_networks_are_measured_once_and_in_turn(workspace, tmp_path, monkeypatch):
    """All networks predict a case before the next, under equal load, and each in its own process."""
    student = workspace.results / "nnUNetTrainerNoKD__student__3d_fullres"
    shutil.copytree(workspace.teacher, student)
    plans = json.loads((student / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 16, 16]
    (student / "plans.json").write_text(json.dumps(plans))
    log = tmp_path / "log"
    monkeypatch.setenv("TEST_MEASURE_LOG", str(log))
    monkeypatch.setattr("nnunet_kd.evaluation.measure._predict", noted)
    folders = {"teacher": workspace.teacher, "one": student, "two": student}
    models = {name: Model(path / "fold_0" / "checkpoint_final.pth", "3d_fullres") for name, path in folders.items()}
    measured = measure_models(models, workspace.raw / "imagesTr", "cpu", 2)
    assert list(measured) == ["teacher", "one", "two"]
    assert measured["one"] is measured["two"] and measured["one"].passes != measured["teacher"].passes
    calls = [line.split() for line in log.read_text().splitlines()]
    assert [number for _, number in calls] == ["0", "0", "1", "1"]
    processes = [process for process, _ in calls]
    assert len({*processes}) == 2 and processes == 2 * processes[:2]
