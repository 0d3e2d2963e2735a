"""``nnunet_kd soft-labels --score``: the Dice of what is stored."""

import numpy as np
import pytest

from nnunet_kd.cli import main
from nnunet_kd.nnunet.cases import PreprocessedCases
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.reading import read_dataset_json, read_plans
from nnunet_kd.teachers.soft_labels import SoftLabelStore, make_soft_labels, store_folder


def score(*words):
    return main(["soft-labels", "-d", "598", "-device", "cpu", "--score", *words])


def test_what_is_stored_is_scored(workspace, capsys):
    """Of the first case, label 2 is stored as label 1; the others are stored as they are."""
    folder = workspace.preprocessed
    assert score() == 1
    assert f"there are no soft labels in {folder}" in capsys.readouterr().err
    experiment = Experiment(
        read_plans(folder / "nnUNetPlans.json"), "3d_fullres", read_dataset_json(folder / "dataset.json")
    )
    cases = PreprocessedCases(folder, experiment)
    first = cases.identifiers[0]

    def logits(case):
        _, labels = cases.load(case)
        labels = np.minimum(labels, 1) if case == first else labels
        return np.stack([np.where(np.maximum(labels, 0) == value, 3.0, -3.0) for value in range(3)])

    store = SoftLabelStore(store_folder(folder, cases.configuration.data_identifier, "teacher"))
    store.begin(cases.data, {"kind": "nnunet"}, cases.identifiers)
    make_soft_labels(store, cases, cases.identifiers[:4], logits)
    other = SoftLabelStore(store_folder(folder, cases.configuration.data_identifier, "other"))
    make_soft_labels(other, cases, cases.identifiers[:1], logits)
    assert score() == 1
    assert "there are several stores of soft labels, other, teacher: name one with --name" in capsys.readouterr().err
    assert score("--name", "teacher") == 0
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    labels = cases.load(first)[1]
    one, two = int((labels == 1).sum()), int((labels == 2).sum())
    assert table[2][:3] == [first, f"{100 * 2 * one / (2 * one + two):.2f}", "0.00"]
    expected = [["100.00", "100.00" if (cases.load(case)[1] == 2).any() else "-"] for case in cases.identifiers[1:4]]
    assert [line[1:3] for line in table[3:6]] == expected and len(table) == 7
    known = [0.0, *(100.0 for _, two in expected if two != "-")]
    assert table[6][0] == "mean" and table[6][2].startswith(f"{np.mean(known):.2f} ± ")
    assert "2 cases without stored soft labels or without a reference are left out." in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-f", "0"], "--score takes only -d, -c, -p and --name: leave out -f"),
        (["--embeddings", "--continue"], "leave out --embeddings, --continue"),
        (["-num_parts", "2"], "leave out -num_parts"),
    ],
)
def test_arguments_that_compute_are_refused(words, message, capsys):
    assert score(*words) == 1
    assert message in capsys.readouterr().err
