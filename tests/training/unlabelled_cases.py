"""Cases without a reference in a test's workspace, and soft labels that know their labels nevertheless."""

import json

import numpy as np
import SimpleITK
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.soft_labels import SoftLabelStore, make_soft_labels, store_folder
from tests.training import variants

IGNORE = 3
WITH_IGNORE = {"background": 0, "oedema": 1, "enhancing": 2, "ignore": IGNORE}
REGIONS_WITH_IGNORE = {**variants.REGIONS["labels"], "ignore": IGNORE}


def split(workspace):
    """Return the training and validation cases of fold 0."""
    fold = json.loads((workspace.preprocessed / "splits_final.json").read_text())[0]
    return fold["train"], fold["val"]


def forget_labels(workspace, cases=None, configuration="3d_fullres", regions=False):
    """Ignore every voxel of some cases, by default of all, and store soft labels of all cases.

    Returns:
        The store, and the true labels ``(z, y, x)`` of every case, which its soft labels imply.
    """
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    before = PreprocessedCases(workspace.preprocessed, Experiment(plans, configuration, workspace.dataset_json))
    true = {case: np.maximum(before.load(case)[1], 0) for case in before.identifiers}
    if regions:
        variants.use_regions(workspace)
    labels = REGIONS_WITH_IGNORE if regions else WITH_IGNORE
    variants.describe(workspace, labels=labels, **({"regions_class_order": [1, 2]} if regions else {}))
    folder = workspace.preprocessed / before.configuration.data_identifier
    classes = [*([(1, 2), 2] if regions else [1, 2]), (-1, 0, 1, 2)]
    unknown = before.identifiers if cases is None else cases
    for case in before.identifiers:
        data, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        segmentation = np.array(segmentation)
        if case in unknown:
            segmentation[:] = IGNORE
            forget_file(workspace.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
        properties["class_locations"] = DefaultPreprocessor._sample_foreground_locations(segmentation, classes)
        for path in folder.glob(f"{case}*"):  # links to files that other tests use
            path.unlink()
        nnUNetDatasetBlosc2.save_case(np.array(data), segmentation, properties, str(folder / case))
    after = PreprocessedCases(workspace.preprocessed, Experiment(plans, configuration, workspace.dataset_json))
    heads = [(1, 2), 2] if regions else [0, 1, 2]
    store = SoftLabelStore(store_folder(workspace.preprocessed, after.configuration.data_identifier, "model"))
    store.begin(after.data, {"kind": "test"}, after.identifiers)

    def logits(case):
        return np.stack([16.0 * np.isin(true[case], head) - (8 if regions else 0) for head in heads])

    make_soft_labels(store, after, after.identifiers, logits)
    return store, true


def forget_file(path):
    """Replace all labels of an image file by the ignore label."""
    image = SimpleITK.ReadImage(str(path))
    unknown = SimpleITK.GetImageFromArray(np.full_like(SimpleITK.GetArrayFromImage(image), IGNORE))
    unknown.CopyInformation(image)
    path.unlink()  # a link to a file that other tests use
    SimpleITK.WriteImage(unknown, str(path))
