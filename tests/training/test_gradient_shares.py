"""The log says what a term contributes to the student's gradient, and saying so changes nothing."""

import copy
import re

import pytest
import torch
from torch import nn

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.training import gradient_shares
from nnunet_kd.training.gradient_shares import gradient_norms, measured
from tests.conftest import SHORT, make_trainer
from tests.training.checkpoints import checkpoint

ONE = {**SHORT, "num_epochs": 2, "num_iterations_per_epoch": 1}


def log_of(trainer):
    with open(trainer.log_file) as log:
        return log.read()


def hand_computed(trainer, batch, weights):
    """Percent of every term, from one backward pass per loss through a copy of the network."""
    joint = copy.deepcopy(trainer.trained()).train()
    images, target = trainer.on_device(batch)
    norms = {}
    for name in ("segmentation", *weights):
        joint.zero_grad()
        outputs = joint(images)
        segmentation = trainer.loss(outputs.logits, target)
        losses = trainer.distiller(
            images, outputs, target, 0, adapters=joint.adapters, task_loss=trainer.loss.loss, soft_labels=None
        )
        {"segmentation": segmentation, **losses}[name].backward()
        norms[name] = {n: p.grad.norm() ** 2 for n, p in joint.student.named_parameters() if p.grad is not None}
    shares = {}
    for name in weights:
        reached = norms[name].keys()
        parts = {
            other: factor * sum(norms[other].get(n, 0) for n in reached) ** 0.5
            for other, factor in {**weights, "segmentation": 1 - weights.get("logits", 0)}.items()
        }
        shares[name] = float(100 * parts[name] / sum(parts.values()))
    return shares


@pytest.mark.parametrize(
    ("kind", "method", "weights"),
    [
        (nnUNetTrainerDCD, {"ramp": None, "weight": 3.0}, {"dcd": 3.0}),
        (
            nnUNetTrainerKD,
            {"terms": [{"name": "dcd", "ramp": None, "weight": 2}, {"name": "logits", "weight": 0.4}]},
            {"dcd": 2.0, "logits": 0.4},
        ),
    ],
    ids=["one", "two"],
)
def test_the_line_equals_a_hand_computation(workspace, kind, method, weights):
    plans = workspace.plans("nnUNetPlans", training=ONE, method=method, teacher={"plans": "nnUNetPlans"})
    trainer = make_trainer(kind, plans, workspace)
    step, expected = trainer.train_step, []

    def first_by_hand(batch):
        if not expected:
            expected.append(hand_computed(trainer, batch, weights))
        return step(batch)

    trainer.train_step = first_by_hand
    trainer.run_training()
    said = dict(re.findall(r"(\w+) contributes (\S+) % of the gradient norm at its weight of", log_of(trainer)))
    assert said.keys() == weights.keys()  # once each
    for name, value in expected[0].items():
        assert 0.5 < value < 99.5 and float(said[name]) == pytest.approx(value, rel=6e-3)


def test_a_ramp_is_said_with_its_weight_now_and_its_full_weight(workspace):
    plans = workspace.plans("nnUNetPlans", training={**ONE, "num_epochs": 4}, method={"ramp": [1, 4], "weight": 0.3})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    (line,) = [line for line in log_of(trainer).splitlines() if "contributes" in line]
    now, weight, full = re.search(
        r"dcd contributes (\S+) % of the gradient norm at this epoch's weight of (\S+), and would contribute (\S+) % "
        r"at its full weight of 0.3$",
        line.strip(),
    ).groups()
    assert float(weight) == pytest.approx(trainer.distiller.terms[0].weight_at(2), rel=1e-2)
    a, b = float(now) / 100, float(full) / 100
    assert a / (1 - a) * 0.3 / float(weight) == pytest.approx(b / (1 - b), rel=2e-2)  # norms of one batch
    assert log_of(trainer).index("contributes") > log_of(trainer).index("Epoch 2")


def test_the_training_is_the_same_without_the_line(workspace, monkeypatch):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "overwrite": True}, method={"ramp": None})
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    said = checkpoint(workspace)
    monkeypatch.setattr(gradient_shares, "terms_that_begin", lambda terms, epoch: [])
    silent = make_trainer(nnUNetTrainerDCD, plans, workspace)
    before = len(log_of(silent))  # trainings that begin in the same second share nnU-Net's log
    silent.run_training()
    assert "contributes" not in log_of(silent)[before:]
    unsaid = checkpoint(workspace)
    for name, weight in said["network_weights"].items():
        assert torch.equal(weight, unsaid["network_weights"][name])
    assert said["logging"]["train_losses"] == unsaid["logging"]["train_losses"]


def test_a_compiled_network_with_frozen_projections_is_measured_and_trained(workspace):
    """nnU-Net compiles networks on CUDA; the backward pass of a compiled network allows one use."""
    method = {"ramp": None, "transform": "published", "projection": "frozen"}
    plans = workspace.plans("nnUNetPlans", training=ONE, method=method)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.on_train_start()
    trainer.network = torch.compile(trainer.network, backend="aot_eager")
    trainer.on_train_epoch_start()
    numbers = trainer.train_step(next(trainer.dataloader_train))
    assert "dcd contributes " in log_of(trainer) and numbers["dcd"] > 0 and not numbers["skipped_steps"]


class Joint(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def losses(self):
        return {"segmentation": self.student(torch.ones(4, 3)).square().sum()}


def test_random_numbers_running_statistics_and_gradients_are_kept():
    joint = Joint()
    before, state = copy.deepcopy(joint.state_dict()), torch.get_rng_state()
    assert measured(joint, joint.losses, 1.0, torch.device("cpu")) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in joint.state_dict().items())
    assert all(parameter.grad is None for parameter in joint.parameters())


def test_the_scale_of_half_precision_leaves_the_norms_and_overflow_is_no_number():
    weight = nn.Linear(2, 1, bias=False)
    losses = {"segmentation": weight(torch.tensor([[3.0, 4.0]])).sum(), "constant": torch.zeros(())}
    norms = gradient_norms(losses, weight, 2.0**16)
    assert norms["segmentation"] == {"segmentation": pytest.approx(5), "constant": 0}
    joint = nn.Module()
    joint.student = weight
    assert (
        measured(joint, lambda: {"segmentation": losses["segmentation"] * 1e36}, 2.0**16, torch.device("cpu")) is None
    )
