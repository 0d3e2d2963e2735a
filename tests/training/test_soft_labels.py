"""Soft labels in nnU-Net's data loader, and the trainer that uses them."""

import json
import os
import shutil

import blosc2
import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_kd.losses import LogitsKDLoss
from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerSAMKD import nnUNetTrainerSAMKD
from nnunet_kd.training.preparation import prepare
from nnunet_kd.training.record import changes, record_of
from nnunet_kd.training.soft_labels import ImageWithSoftLabels, split_batch
from tests.conftest import SHORT, make_trainer
from tests.training import variants
from tests.training.stored_labels import store_of


def augmented_batches(workspace, configuration, count):
    """Return images, soft labels, their mask and the target at full resolution."""
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    trainer = make_trainer(nnUNetTrainerSAMKD, plans, workspace, configuration=configuration)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    for _ in range(count):
        batch = next(loader)
        images, (soft, inside) = split_batch(batch["data"], trainer.num_input_channels)
        yield images, soft, inside, batch["target"][0]


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_labels_as_soft_labels_stay_on_the_labels_through_the_whole_augmentation(workspace, configuration):
    """Rotated, scaled and mirrored together, over 99 % of voxels away from borders agree in every batch."""
    store_of(workspace, configuration)
    agreeing, voxels, moved = np.zeros(2), np.zeros(2), 0
    for images, soft, inside, target in augmented_batches(workspace, configuration, 60):
        assert images.shape[1] == 3 and soft.shape[1] == 3 and images.shape[2:] == soft.shape[2:] == target.shape[2:]
        for one_soft, one_inside, one_target in zip(soft, inside, target, strict=True):
            labels = one_target[0].numpy()
            same = ndimage.maximum_filter(labels, 3) == ndimage.minimum_filter(labels, 3)
            away = same & ndimage.binary_erosion(one_inside[0].numpy(), border_value=1)
            for kind, counted in enumerate((away & (labels == 0), away & (labels > 0))):
                agreeing[kind] += (one_soft.argmax(0).numpy() == labels)[counted].sum()
                voxels[kind] += counted.sum()
            moved += not set(one_soft.unique().tolist()) <= {0.0, 20.0}
    assert (voxels > (20000, 200)).all() and (agreeing / voxels > 0.99).all()
    assert moved > 20  # interpolated patches, which were rotated or scaled


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_intensity_augmentation_never_touches_them(workspace, configuration):
    """A constant is not changed anywhere inside the volume."""
    store_of(workspace, configuration, logits=lambda made: np.full_like(made, 7.0))
    outside = 0
    for images, soft, inside, _ in augmented_batches(workspace, configuration, 25):
        assert ((soft - 7).abs() < 1e-2)[inside.expand_as(soft)].all()
        outside += int((~inside).sum())
        assert images.abs().max() < 50
    assert outside > 0  # rotations and crops reach beyond the volume, which is marked


def test_only_the_crop_is_read():
    reads = []

    class Spy:
        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def __getitem__(self, where):
            reads.append(where)
            return self.array[where]

    image, soft = np.random.rand(2, 6, 7, 8), np.random.rand(3, 6, 7, 8)
    both = ImageWithSoftLabels(Spy(image), Spy(soft))
    assert both.shape == (6, 6, 7, 8)
    where = (slice(None), slice(1, 3), slice(0, 2), slice(4, 8))
    cut = both[where]
    assert reads == [where, where] and cut.dtype == np.float32
    np.testing.assert_allclose(cut[:2], image[where], rtol=1e-6)
    np.testing.assert_allclose(cut[2:5], soft[where], rtol=1e-6)
    assert (cut[5] == 1).all()


def test_loss_is_equation_17(workspace):
    """The loss is alpha KL without tau^2 + (1 - alpha) nnU-Net's loss, over voxels with soft labels."""
    store_of(workspace)
    trainer = make_trainer(nnUNetTrainerSAMKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    images, (soft, inside) = split_batch(batch["data"], 3)
    with torch.no_grad():
        logits, *_ = trainer.network(images)
        hard = trainer.loss(logits, batch["target"]).item()
    student, teacher = (torch.softmax(z.double() / 3, 1) for z in (logits[0], soft))
    divergence = (teacher * (teacher.log() - student.log())).sum(1, keepdim=True)[inside].mean().item()
    step = trainer.train_step(batch)
    assert step["soft_labels"] == pytest.approx(divergence, rel=1e-5)
    assert step["loss"] == pytest.approx(0.5 * divergence + 0.5 * hard, rel=1e-5)


def test_temperature_without_its_square():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    with_square, without = LogitsKDLoss(2.0)(student, teacher), LogitsKDLoss(2.0, rescale=False)(student, teacher)
    assert with_square.item() == pytest.approx(4 * without.item())
    with pytest.raises(ValueError, match="rescale must be true or false, got 1"):
        LogitsKDLoss(rescale=1)


@pytest.mark.parametrize(
    ("method", "hard_weight"), [({"weight": 1.0}, 0.0), ({"weight": 0.0}, 1.0), ({"temperature": 5.0}, 0.5)]
)
def test_rows_of_table_3(workspace, method, hard_weight):
    """Train with soft targets alone, with hard targets alone, and with another temperature."""
    if hard_weight < 1:
        store_of(workspace)
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=method)
    trainer = make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    soft = np.nan_to_num(logged["soft_labels"])
    np.testing.assert_allclose(
        logged["train_losses"], hard_weight * np.array(logged["segmentation"]) + (1 - hard_weight) * soft, rtol=1e-5
    )
    assert (soft > 0).all() == (hard_weight < 1)


def test_cross_entropy_alone(workspace):
    """No soft labels are read, because their weight is 0."""
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"hard_loss": "ce", "weight": 0.0})
    trainer = make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    with torch.no_grad():
        logits, *_ = trainer.network(batch["data"])
    weights = [w for w in trainer.loss.weight_factors if w]
    expected = sum(
        w * torch.nn.functional.cross_entropy(z, t[:, 0].long())
        for w, z, t in zip(weights, logits, batch["target"], strict=False)
    )
    assert trainer.train_step(batch)["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_cross_entropy_alone_without_annotated_voxels(workspace, deep_supervision):
    variants.use_ignore_label(workspace)
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"hard_loss": "ce", "weight": 0.0})
    trainer = make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    trainer.enable_deep_supervision = deep_supervision
    trainer.on_train_start()
    trainer.network.train()
    batch = next(trainer.dataloader_train)
    targets = batch["target"] if deep_supervision else [batch["target"]]
    for target in targets:
        target.fill_(trainer.label_manager.ignore_label)
    assert trainer.train_step(batch)["loss"] == 0
    trainer.network.eval()
    assert trainer.validation_step(batch)["loss"] == 0


@pytest.mark.parametrize("variant", ["use_regions", "use_ignore_label", "use_regions_and_ignore_label"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_regions_and_ignored_voxels(workspace, variant, deep_supervision):
    getattr(variants, variant)(workspace)
    store_of(workspace)
    trainer = make_trainer(nnUNetTrainerSAMKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    trainer.enable_deep_supervision = deep_supervision
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["soft_labels"]).all() and (np.array(logged["soft_labels"]) > 0).all()


def test_cascade(workspace):
    """The channels of the previous stage belong to the network's input and are not soft labels."""
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    variants.use_cascade(workspace, plans, "nnUNetTrainerSAMKD")
    (workspace.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    store_of(workspace, "3d_cascade_fullres")
    trainer = make_trainer(nnUNetTrainerSAMKD, plans, workspace, configuration="3d_cascade_fullres")
    trainer.run_training()
    assert trainer.num_input_channels == 5
    assert np.isfinite(trainer.logger.get_checkpoint()["soft_labels"]).all()


def test_combines_with_terms_that_need_a_teacher_and_unseeded_loading(workspace, monkeypatch):
    store_of(workspace)
    terms = [{"name": "soft_labels", "weight": 0.2}, {"name": "dcd", "ramp": None}, {"name": "dual_self"}]
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "seed": None}, method={"terms": terms})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    for term in ("soft_labels", "dcd", "dual_self"):
        assert np.isfinite(logged[term]).all(), term


def test_refused_with_the_command_before_anything_is_written(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    command = "nnunet_kd soft-labels -d Dataset598_TinyHeads -c 3d_fullres -p nnUNetPlans --sam vit_b --checkpoint FILE"
    with pytest.raises(FileNotFoundError, match=f"there are no soft labels in .*Make them: {command}$"):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    named = workspace.plans("nnUNetPlans", training=SHORT, method={"store": "medsam"})
    with pytest.raises(FileNotFoundError, match=f"no soft labels 'medsam' in .*{command} --name medsam$"):
        make_trainer(nnUNetTrainerSAMKD, named, workspace)
    store = store_of(workspace)
    with pytest.raises(FileNotFoundError, match="there are no soft labels in .*-c 2d"):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace, configuration="2d")
    train = json.loads((workspace.preprocessed / "splits_final.json").read_text())[0]["train"]
    path = store.path(train[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(
        ValueError, match=rf"{train[0]}\.b2nd: the file is damaged\. Make it: {command} --name sam --continue"
    ):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{train[0]}\.b2nd: the file is missing"):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    path.write_bytes(whole)
    (store.folder / f"{train[0]}.json").write_text("no JSON")
    with pytest.raises(ValueError, match=rf"{train[0]}\.b2nd: the file is damaged"):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    (store.folder / "manifest.json").write_text("no JSON")
    with pytest.raises(ValueError, match=r"is not a folder of soft labels: cannot read manifest\.json"):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    shutil.rmtree(store.folder)
    store_of(workspace)
    variants.use_regions(workspace)
    with pytest.raises(ValueError, match="are for labels = "):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    assert not list(workspace.results.glob("nnUNetTrainerSAMKD*"))


def test_a_finished_training_needs_no_soft_labels(workspace):
    """Only validate; the leakage warning is kept."""
    store = store_of(workspace, source={"kind": "nnunet", "folds": [3]})
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 1})
    trainer = make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    trainer.run_training()
    saved = workspace.results / "nnUNetTrainerSAMKD__nnUNetPlans__3d_fullres" / "plans.json"
    assert "teachers (fold 3) that were trained on" in recorded_leakage(json.loads(saved.read_text()))["0"]
    for path in store.folder.iterdir():
        path.unlink()
    again = make_trainer(nnUNetTrainerSAMKD, plans, workspace, resume=True)
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    again.on_train_start()
    assert "0" in recorded_leakage(json.loads(saved.read_text()))


def test_the_record_includes_the_source_of_soft_labels(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    store = store_of(workspace)
    preparation = make_trainer(nnUNetTrainerSAMKD, plans, workspace).preparation
    before = record_of(preparation)
    again = record_of(make_trainer(nnUNetTrainerSAMKD, plans, workspace).preparation)
    assert changes(again, before) == "" and "teacher_checkpoints" not in before
    shutil.rmtree(store.folder)
    store_of(workspace, source={"kind": "sam", "prompt": "points"})
    others = record_of(make_trainer(nnUNetTrainerSAMKD, plans, workspace).preparation)
    assert changes(others, before).startswith("soft_labels_made_by ")
    shutil.rmtree(store.folder)
    gone = record_of(prepare(nnUNetTrainerSAMKD, preparation.student, 0))
    assert changes(gone, before) == "" and changes(before, gone) == ""


def test_a_case_of_another_shape_is_named(workspace):
    store_of(workspace, logits=lambda made: np.zeros((3, 4, 4, 4)))
    trainer = make_trainer(nnUNetTrainerSAMKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    with pytest.raises(ValueError, match=r"have the shape \(4, 4, 4\), but the preprocessed case has"):
        trainer.on_train_start()


def test_labels_that_were_corrected_later_make_soft_labels_out_of_date(workspace):
    """The file's time alone does not count, because a copied data set is still valid."""
    store_of(workspace)
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    folder = workspace.preprocessed / "nnUNetPlans_3d_fullres"
    case = json.loads((workspace.preprocessed / "splits_final.json").read_text())[0]["train"][0]
    for name in (f"{case}.pkl", f"{case}_seg.b2nd"):  # links to files that other tests use
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    os.utime(folder / f"{case}.pkl", (2e9, 2e9))
    make_trainer(nnUNetTrainerSAMKD, plans, workspace)
    blosc2.open(str(folder / f"{case}_seg.b2nd"), mode="a")[0, 3, 3, 3] = 2
    os.utime(folder / f"{case}_seg.b2nd", (2.1e9, 2.1e9))
    with pytest.raises(ValueError, match=rf"{case}\.b2nd: the file is older than the preprocessed case"):
        make_trainer(nnUNetTrainerSAMKD, plans, workspace)


def test_training_again_and_for_longer(workspace):
    """The checkpoint of a finished training must not disable the soft labels."""
    store_of(workspace)
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "num_epochs": 1})
    make_trainer(nnUNetTrainerSAMKD, plans, workspace).run_training()
    longer = workspace.plans("nnUNetPlans", training=SHORT)
    again = make_trainer(nnUNetTrainerSAMKD, longer, workspace, resume=True)
    again.load_checkpoint(f"{again.output_folder}/checkpoint_final.pth")
    again.run_training()
    longer = workspace.plans("nnUNetPlans", training={**SHORT, "overwrite": True})
    from_the_start = make_trainer(nnUNetTrainerSAMKD, longer, workspace)
    from_the_start.run_training()
    for trainer in (again, from_the_start):
        soft = trainer.logger.get_checkpoint()["soft_labels"]
        assert len(soft) == 2 and (np.array(soft) > 0).all()
