"""Soft labels that are stored in a test's workspace."""

import json

import numpy as np

from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.soft_labels import SoftLabelStore, make_soft_labels, store_folder


def store_of(workspace, configuration="3d_fullres", name="sam", logits=None, source=None):
    """Store soft labels of all cases: by default 20 for the class of a voxel and 0 for the others."""
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    cases = PreprocessedCases(workspace.preprocessed, Experiment(plans, configuration, workspace.dataset_json))
    labels = cases.labels
    store = SoftLabelStore(store_folder(workspace.preprocessed, cases.configuration.data_identifier, name))
    store.begin(cases.data, source or {"kind": "sam"}, cases.identifiers)
    wanted = labels.foreground_regions if labels.has_regions else [[-1, 0], *([c] for c in labels.foreground_labels)]

    def logits_of(case):
        made = np.stack([20.0 * np.isin(cases.load(case)[1], region) for region in wanted])
        return made if logits is None else logits(made)

    make_soft_labels(store, cases, cases.identifiers, logits_of)
    return store
