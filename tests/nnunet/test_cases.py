import json

import numpy as np
import pytest

from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment


def test_labels_have_one_value_per_voxel(workspace):
    """From labels that were a colour picture, nnU-Net preprocesses several channels and trains on the first."""
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    cases = PreprocessedCases(workspace.preprocessed, Experiment(plans, "3d_fullres", workspace.dataset_json))
    case = cases.identifiers[0]
    images, labels = cases.load(case)
    folder = workspace.preprocessed / cases.configuration.data_identifier
    properties = cases._dataset.load_case(case)[3]
    for path in folder.glob(f"{case}*"):
        path.unlink()  # they are links to files of other tests
    cases._dataset.save_case(images, np.stack([labels] * 3), properties, str(folder / case))
    with pytest.raises(ValueError, match=f"the labels of case {case} have 3 values per voxel, of which nnU-Net uses"):
        cases.load(case)
