"""The rows of the papers' ablation tables are settings or networks that can be built."""

import json

import pytest
import torch

from nnunet_kd.distillation.methods import TERMS
from nnunet_kd.nnunet.experiment import Experiment, build_network, find_trainer
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.study.ablations import ABLATIONS, rows_of_ablation
from nnunet_kd.study.plans import plans_of_run
from nnunet_kd.study.runs import list_runs, rows_of_methods
from tests.training.small_brainseg_dmif import TINY

CHANNELS = ("T1", "T2", "T1CE", "FLAIR")
OF_METHODS = [name for name, ablation in ABLATIONS.items() if ablation.network is None]
OF_NETWORKS = [name for name in ABLATIONS if name not in OF_METHODS]


def runs_of(name, plans="P"):
    return list_runs(plans, rows_of_methods(["NoKD"]) + rows_of_ablation(name, CHANNELS), [0], [None])


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_has_plans_of_its_own(name):
    runs = runs_of(name)
    assert len({run.plans for run in runs}) == len({run.method for run in runs}) == len(runs) > 2


@pytest.mark.parametrize("name", OF_METHODS)
def test_rows_are_settings_of_the_method(name):
    for run in runs_of(name)[1:]:
        TERMS[name].changed(run.settings["method"], "here").build(1000, "here")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_NETWORKS)
def test_rows_are_networks_that_differ(modalities, name):
    """Each row is a network of its own that maps the data set's slices to its labels."""
    plans = modalities.plans("tiny")
    if name != "dra_unet":
        plans = student_plans(plans, network="brainseg_dmif", name="tiny")
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"].update(TINY)
    given = plans["configurations"]["2d"]["architecture"]
    networks = set()
    for run in runs_of(name, "tiny")[1:]:
        derived = plans_of_run(run, plans, "2d", regions=False)
        architecture = derived["configurations"]["2d"]["architecture"]
        assert architecture["arch_kwargs"].items() >= run.network.arch_kwargs.items()
        if name != "dra_unet":
            assert architecture["arch_kwargs"].items() >= given["arch_kwargs"].items()
        with torch.device("meta"):
            network = build_network(find_trainer(run.trainer), Experiment(derived, "2d", modalities.dataset_json))
            found = network(torch.empty(1, 4, 64, 64))
        assert (found[0] if isinstance(found, (list, tuple)) else found).shape[2:] == (64, 64)
        networks.add(json.dumps(architecture))
    assert len(networks) == len(runs_of(name)) - 1


def test_modalities_have_a_row_for_every_two_or_more_channels():
    chosen = [row.network.arch_kwargs["modalities"] for row in rows_of_ablation("modalities", CHANNELS)]
    assert chosen == [
        *([0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]),
        *([0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3], [0, 1, 2, 3]),
    ]
    assert rows_of_ablation("modalities", CHANNELS)[0].name == "BrainSegDMIF T1-T2"
    with pytest.raises(ValueError, match="needs at least two channels, and the data set has 1"):
        rows_of_ablation("modalities", ["T1"])


def test_an_unknown_ablation():
    with pytest.raises(ValueError, match="there is no ablation 'dc': choose one of dcd, dra_unet"):
        rows_of_ablation("dc", CHANNELS)
