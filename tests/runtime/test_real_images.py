"""Real images, if they lie beside the checkout, are preprocessed and segmented as by nnU-Net."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.cli import main
from nnunet_kd.runtime.cases import PredictionCase, prepare_case
from nnunet_kd.runtime.plans import read_pipeline
from tests.runtime.made_plans import make_dataset_json, make_plans

DATA = Path(__file__).parents[3] / "shared" / "data"
SAMPLES = DATA / "raw_samples"

pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no real images in {SAMPLES}")

MRI, PICTURE = "ZScoreNormalization", "RGBTo01Normalization"
CASES = {
    "thick slices": ("ISLES2022/rawdata/*/*/dwi/*.nii.gz", "SimpleITKIO", [4.0, 1.5, 1.5], MRI),
    "thick slices to cubes": ("ISLES2022/rawdata/*/*/dwi/*.nii.gz", "SimpleITKIO", [1.5, 1.5, 1.5], MRI),
    "four sequences in a brain's mask": ("BraTS2024GLI/*/*t[12]*.nii.gz", "SimpleITKIO", [1.5, 1.5, 1.5], MRI),
    "skin": ("ISIC2018/*/*.jpg", "NaturalImage2DIO", [1.0, 1.0], PICTURE),
    "ultrasound": ("BUSI/*/*).png", "NaturalImage2DIO", [1.0, 1.0], PICTURE),
    "a resized picture": ("BUSI/*/*).png", "NaturalImage2DIO", [1.3, 1.7], PICTURE),
}


@pytest.mark.parametrize("name", CASES)
def test_preprocessing(name):
    pattern, reader, spacing, scheme = CASES[name]
    paths = sorted(SAMPLES.glob(pattern))
    assert paths
    paths = paths[:3] if "BraTS" in pattern else paths[:1]
    theirs = recursive_find_reader_writer_by_name(reader)()
    channels = len(theirs.read_images(list(map(str, paths)))[0])
    plans = make_plans(spacing, [scheme] * channels, [scheme == MRI] * channels, reader=reader)
    dataset_json = make_dataset_json(channels, {"background": 0, "one": 1}, paths[0].suffix)
    pipeline = read_pipeline(plans, dataset_json, "made", Path("model"))
    image, grid = prepare_case(PredictionCase(name, tuple(paths), Path("out")), pipeline)
    manager = PlansManager(plans)
    expected, _, properties = DefaultPreprocessor(verbose=False).run_case(
        list(map(str, paths)), None, manager, manager.get_configuration("made"), dataset_json
    )
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert np.array_equal(grid.properties()["bbox_used_for_cropping"], properties["bbox_used_for_cropping"])


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "cases"), [("Dataset004_Hippocampus", 1), ("Dataset021_BraTSPatches", 1)])
def test_segmentations_by_a_real_teacher(dataset, cases, request, tmp_path):
    """Compare the whole way from images to segmentations."""
    teacher = DATA / "teachers" / dataset / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    images, out = tmp_path / "images", tmp_path / "stock"
    for folder in (images, out):
        folder.mkdir()
    for first in sorted((DATA / dataset / "imagesTr").glob("*_0000.nii.gz"))[:cases]:
        for path in first.parent.glob(f"{first.name[:-12]}_*.nii.gz"):
            shutil.copy(path, images)
    assert main(["export", "onnx", "-m", str(teacher), "-f", "0", "-o", str(tmp_path / "model")]) == 0
    request.getfixturevalue("single_precision")  # without half precision, PyTorch exports nothing
    words = ("-m", str(tmp_path / "model"), "-i", str(images), "--disable_tta")
    assert main(["predict", *words, "-o", str(tmp_path / "ours")]) == 0
    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(teacher), (0,))
    stock.predict_from_files_sequential(str(images), str(out))
    found = sorted((tmp_path / "ours").glob("*.nii.gz"))
    assert len(found) == cases
    for path in found:
        ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(one))) for one in (path, out / path.name))
        assert (ours == theirs).mean() >= 0.9999 and len(np.unique(theirs)) > 1
