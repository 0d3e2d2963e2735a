"""Training steps of all trainers in nnU-Net's mixed precision.

Between the beginning of a step and the end of its backward pass, the CPU never waits for the GPU, apart from nnU-Net's
own loss, which does with an ignore label.
"""

import math

import pytest
import torch

from nnunet_kd.trainers.nnUNetTrainerBrainSegDMIF import nnUNetTrainerBrainSegDMIF
from nnunet_kd.trainers.nnUNetTrainerDualSelfKD import nnUNetTrainerDualSelfKD
from nnunet_kd.trainers.nnUNetTrainerKDSAM import nnUNetTrainerKDSAM
from nnunet_kd.training.kd_sam.phases import DECODER, ENCODER, EncoderProgress
from tests.conftest import SHORT
from tests.gpu.training import Steps, batches_of, learning, make, mixed_precision
from tests.training import small_brainseg_dmif, small_kd_sam, variants
from tests.training.methods import METHODS, store_if_read, trainer_class
from tests.vm_unet_plans import plans_for as vm_unet

LABELS = {
    "labels": lambda workspace: None,
    "regions": variants.use_regions,
    "an ignore label": variants.use_ignore_label,
    "regions and an ignore label": variants.use_regions_and_ignore_label,
}
ALL = {"NoKD": {}, **METHODS, "SAMKD": {}}


def check(figures, place, trainer, epoch=1, waits=0, prefix=""):
    """Take steps of an epoch; ``waits`` is how often nnU-Net's own loss waits in one."""
    trainer.current_epoch = epoch
    trainer.on_train_epoch_start()
    steps, before = Steps(place, trainer, may_wait=waits > 0), learning(trainer)
    values = steps.take(batches_of(trainer))
    moved = sum(not torch.equal(*pair) for pair in zip(before, learning(trainer), strict=True))
    figures[f"{prefix}loss"] = float(values["loss"])
    figures[f"{prefix}skipped steps"] = steps.skipped
    figures[f"{prefix}scale, log2"] = math.log2(trainer.grad_scaler.get_scale())
    figures[f"{prefix}waits per step"] = steps.waits / (steps.skipped + 1)
    figures[f"{prefix}tensors moved"] = moved
    assert steps.types == {torch.float16}
    assert all(math.isfinite(value) for value in values.values())
    assert moved > 0 and figures[f"{prefix}waits per step"] <= waits
    return {*values} - {"loss", "skipped_steps"}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("method", ALL)
def test_a_step(place, figures, workspace, method, labels):
    if place.fake and method == "KD recipe" and labels != "labels":
        pytest.skip("the fit of its weights takes long on a CPU")
    LABELS[labels](workspace)
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=ALL[method])
    store_if_read(workspace, method)
    trainer = make(place, trainer_class(method), plans, workspace)
    waits = waits_of_nnunet(place, workspace) if trainer.label_manager.has_ignore_label else 0
    with mixed_precision(place):
        trainer.on_train_start()
        assert trainer.device.type == place.device.type
        names = check(figures, place, trainer, waits=waits)
        assert names == {"segmentation", *(term.name for term in trainer.distiller.terms)}
        if method == "FreeKD":
            # The prompts are tuned with nnU-Net's loss as well.
            assert "freekd_prompts" in check(figures, place, trainer, 0, 2 * waits, "tuning: ")


def waits_of_nnunet(place, workspace):
    """How often nnU-Net's own loss waits in a step."""
    trainer = make(place, trainer_class("NoKD"), workspace.plans("nnUNetPlans", training=SHORT), workspace)
    with mixed_precision(place):
        trainer.on_train_start()
        steps = Steps(place, trainer, may_wait=True)
        steps.take(batches_of(trainer))
    return steps.waits / (steps.skipped + 1)


def test_a_step_of_vm_unet(place, figures, workspace):
    trainer = make(place, nnUNetTrainerDualSelfKD, vm_unet(workspace), workspace, "2d")
    with mixed_precision(place):
        trainer.on_train_start()
        assert check(figures, place, trainer) == {"segmentation", "dual_self"}


def test_a_step_of_brainseg_dmif(place, figures, workspace):
    plans = small_brainseg_dmif.plans_for(workspace)
    trainer = make(place, nnUNetTrainerBrainSegDMIF, plans, workspace, "2d")
    with mixed_precision(place):
        trainer.on_train_start()
        of_labels = place.size(0, 2)  # on the CPU alone, FocalDice reads the lowest and the highest label
        assert check(figures, place, trainer, waits=of_labels) == {"segmentation"}


def test_a_step_of_both_phases_of_kd_sam(place, figures, workspace, sam):
    trainer = make(place, nnUNetTrainerKDSAM, small_kd_sam.plans_for(workspace, sam), workspace, "2d")
    with mixed_precision(place):
        trainer.on_train_start()
        assert trainer.trained().learns == ENCODER
        names = check(figures, place, trainer, 0, prefix="encoder: ")
        assert names == {"embedding_mse", "embedding_perceptual"}
        trainer.progress = EncoderProgress(end=1)
        trainer.trained().learns = DECODER
        assert check(figures, place, trainer, 1, prefix="decoder: ") == {"segmentation"}


def test_a_wait_is_found(place, figures, workspace):
    """The watch is not blind: a loss that reads a number of the GPU raises, and is counted where it may wait."""
    trainer = make(place, trainer_class("NoKD"), workspace.plans("nnUNetPlans", training=SHORT), workspace)
    with mixed_precision(place):
        trainer.on_train_start()
        loss = trainer.loss

        def reading(*given):
            value = loss(*given)
            return value if value.item() < math.inf else 0 * value

        trainer.loss = reading
        with pytest.raises(RuntimeError, match="synchronizing"):
            Steps(place, trainer).take(batches_of(trainer))
        steps = Steps(place, trainer, may_wait=True)
        steps.take(batches_of(trainer))
    figures["waits per step"] = steps.waits / (steps.skipped + 1)
    assert figures["waits per step"] == 1
