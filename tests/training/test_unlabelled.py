"""Trainings on cases without a reference."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_kd.losses import LogitsKDLoss
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.trainers.nnUNetTrainerSoftKD import nnUNetTrainerSoftKD
from nnunet_kd.training.soft_labels import split_batch
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.checkpoints import checkpoint
from tests.training.unlabelled_cases import IGNORE, forget_labels, split

KINDS = [("3d_fullres", False), ("3d_fullres", True), ("2d", False), ("2d", True)]  # configuration, regions
every_kind = pytest.mark.parametrize(("configuration", "regions"), KINDS)


def soft_kd(workspace, configuration="3d_fullres", method=None, kind=nnUNetTrainerSoftKD, **training):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, **training}, method=method or {})
    return make_trainer(kind, plans, workspace, configuration=configuration)


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def is_ignored(target, regions):
    """Return which voxels a target of one scale ignores."""
    return target[:, -1].bool() if regions else target[:, 0] == IGNORE


@every_kind
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_loss_of_stock_nnunet_has_no_gradient_where_all_is_ignored(
    workspace, configuration, regions, deep_supervision
):
    """With Dice per case in 3-D and over the batch in 2-D."""
    forget_labels(workspace, configuration=configuration, regions=regions)
    trainer = soft_kd(workspace, configuration)
    trainer.enable_deep_supervision = deep_supervision
    trainer.on_train_start()
    trainer.network.train()
    assert trainer.configuration_manager.batch_dice == (configuration == "2d")
    batch = next(trainer.dataloader_train)
    target, cases = trainer.unlabelled.in_step(batch["keys"], batch["target"], trainer.distiller.labels)
    assert cases.all()
    scales = target if deep_supervision else [target]
    assert all(is_ignored(scale, regions).all() for scale in scales)
    outputs = trainer.network(batch["data"][:, :3]).logits
    leaves = [one.detach().requires_grad_() for one in (outputs if deep_supervision else [outputs])]
    loss = trainer.loss(leaves if deep_supervision else leaves[0], target)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)


@every_kind
def test_a_step_without_references_follows_the_soft_labels_everywhere(workspace, configuration, regions):
    """Its gradient is half of that of the divergence over all voxels inside the volume, and nothing else."""
    forget_labels(workspace, configuration=configuration, regions=regions)
    trainer = soft_kd(workspace, configuration)
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    images, (soft, inside) = split_batch(batch["data"], 3)
    assert not inside.all(), "a patch reaches beyond the volume, where nnU-Net has background"
    assert not is_ignored(batch["target"][0], regions).all()
    student = trainer.trained().student
    divergence = LogitsKDLoss()(student(images)[0], soft, regions=regions, valid=inside)
    expected = torch.autograd.grad(0.5 * divergence, [*student.parameters()], allow_unused=True)
    optimize = trainer.optimize

    def kept(total, values):
        taken = torch.autograd.grad(total, [*student.parameters()], retain_graph=True, allow_unused=True)
        for one, other in zip(taken, expected, strict=True):
            if other is None:
                assert one is None or not one.any()
            else:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
        return optimize(total, values)

    trainer.optimize = kept
    values = trainer.train_step(batch)
    assert values["soft_labels"] == pytest.approx(divergence.item(), rel=1e-5) and divergence.item() > 0.01


@pytest.mark.parametrize("regions", [False, True])
def test_labelled_cases_are_treated_as_before(workspace, regions):
    """In a mixed batch the soft labels skip ignored voxels of labelled cases only."""
    train, _ = split(workspace)
    forget_labels(workspace, train[:2], regions=regions)
    trainer = soft_kd(workspace)
    trainer.on_train_start()
    trainer.network.train()
    while True:
        batch = next(trainer.dataloader_train)
        unknown = torch.tensor([key in train[:2] for key in batch["keys"]])
        if unknown.any() and not unknown.all():
            break
    for scale in batch["target"]:  # a third of every case
        third = scale[:, :, : scale.shape[2] // 3]
        third[:] = 0 if regions else IGNORE
        if regions:
            third[:, -1] = 1
    given = [scale.clone() for scale in batch["target"]]
    images, (soft, inside) = split_batch(batch["data"], 3)
    valid = inside & (~is_ignored(given[0], regions)[:, None] | unknown.view(-1, 1, 1, 1, 1))
    with torch.no_grad():
        logits = trainer.trained().student(images)
        divergence = LogitsKDLoss()(logits[0], soft, regions=regions, valid=valid).item()
        changed = [trainer.distiller.labels.ignored(scale, unknown) for scale in given]
        hard = trainer.loss(logits, changed).item()
    assert all(torch.equal(scale[~unknown], other[~unknown]) for scale, other in zip(given, changed, strict=True))
    values = trainer.train_step(batch)
    assert values["soft_labels"] == pytest.approx(divergence, rel=1e-5)
    assert values["loss"] == pytest.approx(0.5 * divergence + 0.5 * hard, rel=1e-5)
    assert f"2 of {len(train)} training cases have no reference: they learn from the soft labels 'model' alone" in (
        log_of(trainer)
    )


@every_kind
def test_foreground_is_oversampled_from_the_teacher(workspace, recwarn, configuration, regions):
    forget_labels(workspace, configuration=configuration, regions=regions)
    trainer = soft_kd(workspace, configuration)
    trainer.initialize()
    loader = trainer.get_dataloaders()[0].data_loader.loader
    loader.transforms = None
    loader.patch_size = (1 if configuration == "2d" else 3, 5, 5)
    loader.need_to_pad = np.zeros(3, int)
    share = []
    for percent in (1.0, 0.0):
        loader.oversample_foreground_percent = percent
        soft = torch.cat([next(loader)["data"][:, 3:-1] for _ in range(20)])
        labels = (soft > 0).any(1) if regions else soft.argmax(1) > 0
        share.append(float(labels.flatten(1).any(1).float().mean()))
    assert share[0] == 1 and share[1] < 0.9
    assert not any("No annotated pixels" in str(one.message) for one in recwarn)


@every_kind
def test_hard_labels_of_the_teacher_as_references(workspace, configuration, regions):
    """They move with the image through the whole augmentation, as a reference does."""
    train, _ = split(workspace)
    _, true = forget_labels(workspace, configuration=configuration, regions=regions)
    trainer = soft_kd(workspace, configuration, {"weight": 0.0}, unlabelled="hard")
    trainer.initialize()
    dataset, _ = trainer.get_tr_and_val_datasets()
    _, segmentation, _, _ = dataset.load_case(train[0])
    crop = (slice(None), *(slice(1, size - 1) if size > 1 else slice(None) for size in true[train[0]].shape))
    np.testing.assert_array_equal(segmentation[crop], true[train[0]][None][crop])
    loader, _ = trainer.get_dataloaders()
    foreground = 0
    for _ in range(10):
        batch = next(loader)
        target, soft = batch["target"][0], batch["data"][:, 3:-1]
        assert not is_ignored(target, regions).any()
        taught, given = ((soft > 0), target[:, :-1].bool()) if regions else (soft.argmax(1) > 0, target[:, 0] > 0)
        assert (taught == given).float().mean() > 0.97
        foreground += int(given.sum())
    assert foreground > 500
    trainer.run_training()
    assert np.isnan(trainer.logger.get_checkpoint()["soft_labels"]).all()  # its weight is 0
    assert "the segmentation of the soft labels 'model' is theirs" in log_of(trainer)


def test_hard_labels_need_soft_labels(workspace):
    with pytest.raises(ValueError, match='unlabelled: "hard" takes the segmentations of stored soft labels, which no'):
        soft_kd(workspace, kind=nnUNetTrainerKD, unlabelled="hard")
    with pytest.raises(ValueError, match='training.unlabelled must be "soft" or "hard", got \'none\''):
        soft_kd(workspace, unlabelled="none")


def test_a_training_without_soft_labels_says_that_it_learns_nothing(workspace):
    forget_labels(workspace, split(workspace)[0][:1])
    trainer = soft_kd(workspace, kind=nnUNetTrainerNoKD)
    trainer.run_training()
    assert "WARNING: 1 of 4 training cases have no reference, and this trainer reads no soft labels" in log_of(trainer)


# ---- Validation


def test_labelled_cases_validate_if_there_are_any(workspace):
    _, validation = split(workspace)
    forget_labels(workspace, validation[:1])
    trainer = soft_kd(workspace)
    trainer.on_train_start()
    assert trainer.get_tr_and_val_datasets()[1].identifiers == validation[1:]
    assert {key for _ in range(10) for key in next(trainer.dataloader_val)["keys"]} == {*validation[1:]}
    assert f"the pseudo Dice is of the {len(validation) - 1} validation cases with a reference" in log_of(trainer)


@every_kind
def test_agreement_with_the_teacher_validates_otherwise(workspace, configuration, regions):
    _, validation = split(workspace)
    _, true = forget_labels(workspace, validation, configuration, regions)
    trainer = soft_kd(workspace, configuration)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["mean_fg_dice"]).all()
    case = validation[0]
    found = trainer.get_tr_and_val_datasets()[1].load_case(case)[1]
    np.testing.assert_array_equal(found[(slice(None),) * 4], true[case][None])
    assert "the pseudo Dice is agreement with the teacher's segmentation of the soft labels 'model', not accur" in (
        log_of(trainer)
    )


def test_agreement_needs_soft_labels_of_the_validation_cases(workspace):
    _, validation = split(workspace)
    store, _ = forget_labels(workspace)
    store.path(validation[0]).unlink()
    with pytest.raises(ValueError, match=rf"{validation[0]}\.b2nd is missing: make it with nnunet_kd soft-labels"):
        soft_kd(workspace).on_train_start()


@pytest.mark.parametrize("labelled", [0, 1])
def test_the_final_validation_says_what_it_means(workspace, labelled):
    _, validation = split(workspace)
    unknown = validation[labelled:]
    forget_labels(workspace, unknown)
    trainer = soft_kd(workspace, num_epochs=1)
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    for case in summary["metric_per_case"]:
        values = [metrics["Dice"] for metrics in case["metrics"].values()]
        assert np.isnan(values).all() == (Path(case["reference_file"]).name.split(".")[0] in unknown)
    assert np.isnan(summary["foreground_mean"]["Dice"]) == (labelled == 0)
    expected = (
        "nothing is known about the accuracy" if labelled == 0 else f"the mean Dice is of the other {labelled} alone"
    )
    assert expected in log_of(trainer)


# ---- The recipe, and resuming


def test_the_start_is_the_pruned_teacher_if_the_plans_name_it(workspace):
    forget_labels(workspace)
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": "same"}, method={"soft_labels": "model"})
    named = make_trainer(nnUNetTrainerSoftKD, plans, workspace)
    named.run_training()
    log = log_of(named)
    assert "initial weights: the best channels of " in log and "initial weights: random" not in log
    assert (
        "Dice on other training patches (the teacher's): " in log
        and "nan" not in log.split("(the teacher's): ")[1][:80]
    )
    assert "without a reference, the soft labels take its place" in log
    assert named.preparation.settings.training.ema_decay == 0.99
    shutil.rmtree(workspace.teacher)
    unnamed = soft_kd(workspace, method={"soft_labels": "model"}, overwrite=True)
    unnamed.run_training()
    assert "initial weights: random; a student starts as its pruned teacher if" in log_of(unnamed)
    assert unnamed.sources.start is None and unnamed.preparation.settings.training.ema_decay == 0.99


def test_two_names_of_one_store_are_refused(workspace):
    with pytest.raises(ValueError, match="store and soft_labels are the same setting: give one of them"):
        soft_kd(workspace, method={"soft_labels": "model", "store": "sam"})


@pytest.mark.parametrize("taught", ["soft", "hard"])
def test_a_resumed_training_is_the_undisturbed_one_bit_for_bit(workspace, taught):
    forget_labels(workspace, split(workspace)[0][1:])
    schedule = {"num_epochs": 4, "unlabelled": taught}
    soft_kd(workspace, **schedule).run_training()
    expected = checkpoint(workspace, "nnUNetTrainerSoftKD")
    folder = workspace.results / "nnUNetTrainerSoftKD__nnUNetPlans__3d_fullres"
    shutil.rmtree(folder)
    stop_within(soft_kd(workspace, **schedule), 5)
    plans = workspace.plans("nnUNetPlans", training={**SHORT, **schedule})
    resumed = make_trainer(nnUNetTrainerSoftKD, plans, workspace, resume=True)
    resumed.load_checkpoint(str(folder / "fold_0" / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    found = checkpoint(workspace, "nnUNetTrainerSoftKD")
    for name, weight in expected["network_weights"].items():
        assert torch.equal(weight, found["network_weights"][name]), name
    assert expected["logging"]["val_losses"] == found["logging"]["val_losses"]
