"""Soft labels and embeddings that the device computes beside the CPU's."""

import json

import numpy as np
import pytest
import torch

from nnunet_kd.cli import main
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.teachers.sam_embeddings import EmbeddingStore
from nnunet_kd.teachers.soft_labels import SoftLabelStore, store_folder
from tests.gpu.agreement import error


def stored(workspace, name, device, words, kind=SoftLabelStore, configuration="3d_fullres"):
    """Let the command store the values of all cases, and read them."""
    command = ["soft-labels", "-d", "598", "-c", configuration, "--name", name, "-device", device, *words]
    assert main(command) == 0
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    cases = PreprocessedCases(workspace.preprocessed, Experiment(plans, configuration, workspace.dataset_json))
    folder = store_folder(workspace.preprocessed, cases.configuration.data_identifier, name, kind)
    store = kind(folder)
    return [torch.from_numpy(np.asarray(store.open(case)[:], np.float32)) for case in cases.identifiers]


@pytest.mark.parametrize("kind", ["teacher", "model", "SAM", "SAM's embeddings"])
def test_values(place, figures, workspace, sam, kind):
    words = {
        "teacher": ["--teacher", "-f", "0"],
        "model": ["--model", str(workspace.teacher), "-f", "0"],
        "SAM": ["--sam", "tiny", "--checkpoint", str(sam)],
        "SAM's embeddings": ["--sam", "tiny", "--checkpoint", str(sam), "--embeddings"],
    }[kind]
    of_patches = kind == "SAM's embeddings"
    where = (EmbeddingStore, "2d") if of_patches else (SoftLabelStore, "3d_fullres")
    ours, reference = (
        stored(workspace, name, device, words, *where)
        for name, device in (("device", place.device.type), ("reference", "cpu"))
    )
    figures["error"] = error(ours, reference)
    figures["cases"] = len(ours)
    assert figures["error"] < 2e-2
    if not of_patches:
        same = sum(int((a.argmax(0) == b.argmax(0)).sum()) for a, b in zip(ours, reference, strict=True))
        figures["same class"] = same / sum(one[0].numel() for one in reference)
        assert figures["same class"] > 0.99
