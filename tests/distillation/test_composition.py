"""Several terms in one training share one pass of the teacher and one sum; prompts are tuned first."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerFreeKD import nnUNetTrainerFreeKD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from tests.conftest import SHORT, make_trainer


class Calls:
    """Count the passes through a module's parts."""

    def __init__(self, **modules):
        self.counts = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name: self.count(name))

    def count(self, name):
        self.counts[name] += 1


def test_terms_of_the_block_are_summed_and_the_teacher_runs_once_per_step(workspace):
    terms = [
        {"name": "dcd", "weight": 0.5, "ramp": [1, 0]},
        {"name": "logits", "weight": 0.3},
        {"name": "cwd", "weight": 3},
    ]
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"terms": terms})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    teacher = trainer.distiller.teacher
    calls = Calls(encoder=teacher.encoder, decoder=teacher.decoder)
    trainer.run_training()
    # Four steps, and the batch of either epoch from which the shares of the terms are measured.
    assert calls.counts == {"encoder": 6, "decoder": 6}
    logged = {name: np.array(values) for name, values in trainer.logger.get_checkpoint().items() if name != "lrs"}
    assert np.isnan(logged["dcd"][0]) and np.isfinite(logged["dcd"][1])
    expected = 0.7 * logged["segmentation"] + 0.3 * logged["logits"] + 3 * logged["cwd"]
    expected[1] += 0.5 * logged["dcd"][1]
    np.testing.assert_allclose(logged["train_losses"], expected, rtol=1e-5)


def test_the_teacher_decodes_only_while_a_term_needs_it(workspace):
    terms = [{"name": "dcd", "ramp": None}, {"name": "logits", "ramp": [1, 0]}]
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"terms": terms})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    calls = Calls(encoder=trainer.distiller.teacher.encoder, decoder=trainer.distiller.teacher.decoder)
    trainer.run_training()
    assert calls.counts == {"encoder": 6, "decoder": 3}


def test_the_trainers_own_term_with_another(workspace):
    method = {"ramp": None, "levels": 1, "add": [{"name": "fitnets", "weight": 0.1, "stages": [0]}]}
    trainer = make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT, method=method), workspace)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["dcd"]).all() and np.isfinite(logged["fitnets"]).all()
    assert len(trainer.trained().adapters["fitnets"]) == 1
    log = next((workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0").glob("training_log*"))
    assert "distilling dcd: weight 0.01" in log.read_text() and "distilling fitnets: weight 0.1" in log.read_text()


def test_the_recipe_applies_only_without_terms_in_the_plans(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    assert not trainer.preparation.terms and trainer.preparation.uses_teacher
    training = trainer.preparation.settings.training
    assert {key: getattr(training, key) for key in nnUNetTrainerKD.recipe} == nnUNetTrainerKD.recipe
    trainer.run_training()
    assert trainer.distiller.teacher is None  # a training that has begun attaches it later
    assert np.isfinite(trainer.logger.get_checkpoint()["train_losses"]).all()

    said = {**SHORT, "initial_weights": None, "ema_decay": None}
    trainer = make_trainer(nnUNetTrainerKD, workspace.plans("nnUNetPlans", training=said), workspace)
    assert trainer.preparation.settings.training.initial_weights is None
    listed = workspace.plans("nnUNetPlans", training=SHORT, method={"terms": [{"name": "dual_self"}]})
    trainer = make_trainer(nnUNetTrainerKD, listed, workspace)
    assert not trainer.preparation.uses_teacher
    assert trainer.preparation.settings.training.ema_decay is None
    more = workspace.plans("nnUNetPlans", training=SHORT, method={"add": [{"name": "logits", "weight": 0.125}]})
    trainer = make_trainer(nnUNetTrainerKD, more, workspace)
    assert [term.weight for term in trainer.preparation.terms] == [0.125] and trainer.preparation.starts_from_teacher
    with pytest.raises(ValueError, match="nnunet_kd.method: 'weight' belongs to a term: name the term"):
        make_trainer(nnUNetTrainerKD, workspace.plans("nnUNetPlans", method={"weight": 0.5}), workspace)


@pytest.mark.draws
def test_progress_shows_the_terms(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    trainer = make_trainer(nnUNetTrainerLogitsKD, plans, workspace)
    trainer.run_training()
    picture = Image.open(f"{trainer.output_folder}/progress.png")
    assert picture.size == (3000, 5400 + 1800)  # nnU-Net's picture and one panel


def test_prompts_are_tuned_then_frozen(workspace):
    schedule = {**SHORT, "num_epochs": 3}
    plans = workspace.plans("nnUNetPlans", training=schedule, method={"prompt_epochs": 2})
    trainer = make_trainer(nnUNetTrainerFreeKD, plans, workspace)
    trainer.on_train_start()
    adapters = trainer.trained().adapters["freekd"]
    seen = []

    def remember():
        seen.append({name: parameter.detach().clone() for name, parameter in adapters.named_parameters()})

    begin = trainer.on_train_epoch_start
    trainer.on_train_epoch_start = lambda: (remember(), begin())
    trainer.run_training()
    remember()
    for name in seen[0]:
        moved = [not torch.equal(before[name], after[name]) for before, after in itertools.pairwise(seen)]
        if "tokens" in name:
            assert moved == [True, True, False], name
        else:  # phi decays like all adapters of waiting terms, and learns at last
            assert moved[2], name
    logged = trainer.logger.get_checkpoint()
    tuning, distilling = np.array(logged["freekd_prompts"]), np.array(logged["freekd"])
    assert np.isfinite(tuning).tolist() == [True, True, False]
    assert np.isfinite(distilling).tolist() == [False, False, True]
    np.testing.assert_allclose(logged["train_losses"][0], logged["segmentation"][0] + tuning[0], rtol=1e-5)


@pytest.mark.slow
def test_prompts_are_tuned_with_nnunets_loss_of_the_teacher(workspace):
    """The student learns nothing from it, and the teacher's decoder does not change."""
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "initial_lr": 0.1})
    trainer = make_trainer(nnUNetTrainerFreeKD, plans, workspace)
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    before = [p.clone() for p in trainer.distiller.teacher.parameters()]
    first = trainer.train_step(batch)["freekd_prompts"]
    for _ in range(12):
        last = trainer.train_step(batch)["freekd_prompts"]
    assert last < first
    for old, new in zip(before, trainer.distiller.teacher.parameters(), strict=True):
        assert torch.equal(old, new) and new.grad is None
