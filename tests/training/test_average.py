"""The average of the student's weights is validated, saved and resumed."""

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import NOW, checkpoint


def test_the_average_is_saved_and_validated(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "ema_decay": 0.5}, method=NOW)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    content = checkpoint(workspace)
    own, averaged = content["nnunet_kd"]["average"], content["network_weights"]
    assert content["nnunet_kd"]["average_shown"]
    assert any(not torch.equal(own[name], averaged[name]) for name in own)
    torch.testing.assert_close({**trainer.trained().average.network.state_dict()}, {**averaged})
    assert all(torch.equal(own[name], weight) for name, weight in trainer.trained().student.named_parameters())


@pytest.mark.parametrize("averaged", [True, False])
def test_an_average_can_be_added_or_removed_when_a_training_resumes(workspace, averaged):
    schedule = {**SHORT, "save_every": 1}
    begun, now = (
        workspace.plans("nnUNetPlans", training={**schedule, **({"ema_decay": 0.5} if decay else {})})
        for decay in (averaged, not averaged)
    )
    stop_within(make_trainer(nnUNetTrainerNoKD, begun, workspace), 3)
    saved = checkpoint(workspace, "nnUNetTrainerNoKD", name="latest")
    own = saved["nnunet_kd"]["average"] if averaged else saved["network_weights"]
    trainer = make_trainer(nnUNetTrainerNoKD, now, workspace, resume=True)
    maybe_load_checkpoint(trainer, True, False)
    student = trainer.trained().student
    assert_same = torch.testing.assert_close
    evaluated = trainer.trained().evaluated.state_dict()  # the network that validation uses
    assert_same({**evaluated}, {**saved["network_weights"]}, rtol=0, atol=0)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    state = student.state_dict()
    assert_same({name: state[name] for name in own}, {**own}, rtol=0, atol=0)
    if averaged:
        assert any(not torch.equal(own[name], saved["network_weights"][name]) for name in own)
        assert trainer.trained().average is None
    else:
        assert_same({**trainer.trained().average.network.state_dict()}, {**saved["network_weights"]}, rtol=0, atol=0)


def test_average_follows_every_step(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "ema_decay": 0.5})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    trainer.on_train_start()
    student = trainer.trained().student
    passed = [{name: weight.detach().clone() for name, weight in student.named_parameters()}]
    step = trainer.train_step

    def remembering(batch):
        numbers = step(batch)
        passed.append({name: weight.detach().clone() for name, weight in student.named_parameters()})
        return numbers

    trainer.train_step = remembering
    trainer.run_training()
    assert len(passed) == 1 + 4
    saved = checkpoint(workspace, "nnUNetTrainerNoKD")["network_weights"]
    for name in passed[0]:
        expected = passed[0][name]
        for weights in passed[1:]:
            expected = (expected + weights[name]) / 2
        torch.testing.assert_close(saved[name], expected)


def test_the_average_starts_from_the_initial_weights(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "ema_decay": 0.9})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    trainer.initialize()
    with torch.no_grad():  # as nnU-Net's -pretrained_weights does
        for parameter in trainer.trained().student.parameters():
            parameter.fill_(3.0)
    trainer.on_train_start()
    averaged = trainer.trained().average.network.parameters()
    assert all((parameter == 3).all() for parameter in averaged)
