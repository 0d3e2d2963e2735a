"""The postprocessing that nnU-Net's own command determines is installed with a model."""

import pickle
import shutil
import zipfile

import numpy as np
import SimpleITK as sitk

from nnunet_kd.cli import main
from nnunet_kd.deploy.stock import export_stock
from nnunet_kd.deploy.trained import read_trained
from tests.students import results


def test_what_nnunets_own_command_writes_is_installed(students, tmp_path, monkeypatch):
    """Each label has a distant voxel, so that the command adds a step for all labels, as NumPy integers."""
    predicted, reference = tmp_path / "predicted", tmp_path / "reference"
    predicted.mkdir()
    reference.mkdir()
    for path in sorted((students.raw / "labelsTr").iterdir())[:2]:
        shutil.copy(path, reference)
        image = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(image)
        labels[0, 0, 0], labels[-1, -1, -1] = 1, 2
        spoilt = sitk.GetImageFromArray(labels)
        spoilt.CopyInformation(image)
        sitk.WriteImage(spoilt, str(predicted / path.name))
    files = ("-plans_json", students.preprocessed / "nnUNetPlans.json", "-dataset_json", students.raw / "dataset.json")
    words = ("-i", predicted, "-ref", reference, *files, "-np", "1", "--remove_postprocessed")
    students.command("nnUNetv2_determine_postprocessing", *map(str, words))
    steps = pickle.loads((predicted / "postprocessing.pkl").read_bytes())
    assert steps[0] and all(type(label) is np.int64 for label in steps[1][0]["labels_or_regions"])

    archive = tmp_path / "student.zip"
    model = export_stock(read_trained(results(students), ["0"]), archive)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.write(predicted / "postprocessing.pkl", f"{model}/crossval_results_folds_0/postprocessing.pkl")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert main(["install", str(archive)]) == 0
    installed = tmp_path / "results" / model / "crossval_results_folds_0" / "postprocessing.pkl"
    assert pickle.loads(installed.read_bytes()) == steps
