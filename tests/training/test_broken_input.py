"""Broken input is reported in one sentence, and harms neither the weights nor the files of a training."""

import itertools
import json
import multiprocessing
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_kd.cli import main
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.trainers.nnUNetTrainerSAMKD import nnUNetTrainerSAMKD
from nnunet_kd.training.results import Lock
from tests.conftest import SHORT, make_trainer, stop_within
from tests.training.methods import FAST_ONES_FIRST, METHODS, READ_LABELS, store_if_read, trainer_class
from tests.training.stored_labels import store_of

FOLDER = "nnUNetTrainer{}__nnUNetPlans__3d_fullres"


def rewrite(workspace, change, configuration="3d_fullres"):
    """Change image and labels of every preprocessed case of fold 0's training part."""
    folder = workspace.preprocessed / f"nnUNetPlans_{configuration}"
    dataset = nnUNetDatasetBlosc2(str(folder))
    for identifier in dataset.identifiers:
        image, labels, _, properties = dataset.load_case(identifier)
        image, labels = np.array(image), np.array(labels)
        change(image, labels, properties)
        for path in folder.glob(f"{identifier}*"):
            path.unlink()
        nnUNetDatasetBlosc2.save_case(image, labels, properties, str(folder / identifier))


def not_finite(value):
    def change(image, labels, properties):
        image[1] = value

    return change


def another_class(image, labels, properties):
    labels[:] = 7


def no_foreground(image, labels, properties):
    labels[:] = 0
    properties["class_locations"] = {1: [], 2: []}


def one_voxel(image, labels, properties):
    no_foreground(image, labels, properties)
    centre = tuple(size // 2 for size in labels.shape)
    labels[centre] = 2
    properties["class_locations"] = {1: [], 2: np.array([centre])}


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            not_finite(np.nan),
            "channel 1 of its preprocessed image has values that are not finite. Correct the raw",
        ),
        (not_finite(-np.inf), "channel 1 of its preprocessed image has values that are not finite"),
        (
            another_class,
            "its segmentation has the label 7, but dataset.json declares 0 to 2. nnUNetv2_plan_and_preprocess --verify",
        ),
    ],
    ids=["not a number", "infinite", "another class"],
)
def test_a_broken_case_is_named_and_nothing_is_learnt_from_it(workspace, capsys, monkeypatch, change, message, workers):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    rewrite(workspace, change)
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    trainer.initialize()
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    with pytest.raises(ValueError, match=rf"^case head_00\d: {message}"):
        trainer.run_training()
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerNoKD", "--cases"]) == 1
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")]
    assert len(found) == 1 and found[0].count(message) == 6
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert not list(workspace.results.glob(FOLDER.format("NoKD") + "/fold_0/*.pth"))


@pytest.mark.parametrize(
    ("more", "known"),
    [({}, "0 to 2"), ({"ignore": 3}, "0 to 3"), ({"far": 5}, "0, 1, 2, 5")],
    ids=["", "ignore", "far"],
)
def test_doctor_checks_the_labels_of_regions(workspace, capsys, more, known):
    """The training sees only regions, to which a label outside all of them is background."""
    path = workspace.preprocessed / "dataset.json"
    labels = {"background": 0, "whole": [1, 2], "core": [2], **more}
    order = [1, 2, *(value for name, value in more.items() if name != "ignore")]
    path.write_text(json.dumps({**workspace.dataset_json, "labels": labels, "regions_class_order": order}))
    words = ("doctor", "-d", "598", "-tr", "nnUNetTrainerNoKD", "--cases")
    assert main(words) == 0
    rewrite(workspace, another_class)
    capsys.readouterr()
    assert main(words) == 1
    assert f"has the label 7, but dataset.json declares {known}. nnUNetv2_plan" in capsys.readouterr().out


def test_soft_labels_that_are_not_finite_are_named(workspace, monkeypatch):
    monkeypatch.setattr(SoftLabelStore, "write", _without_looking(SoftLabelStore.write))
    store_of(workspace, logits=lambda case: np.full_like(case, np.nan))
    trainer = make_trainer(nnUNetTrainerSAMKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    with pytest.raises(ValueError, match=r"^case head_00\d: its soft labels are not finite. Remove their file"):
        trainer.run_training()


def _without_looking(write):
    """The store was made by another program."""

    def written(self, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "isfinite", np.ones_like)
            write(self, *arguments)

    return written


@pytest.mark.parametrize(
    ("method", "change"),
    [
        *(pytest.param(one, no_foreground, marks=pytest.mark.slow if one == "KD recipe" else ()) for one in METHODS),
        *((one, one_voxel) for one in READ_LABELS),
    ],
)
def test_training_on_cases_without_foreground_or_with_one_voxel_of_it(workspace, method, change):
    rewrite(workspace, change)
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=METHODS[method])
    store_if_read(workspace, method)
    trainer = make_trainer(trainer_class(method), plans, workspace)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["train_losses"]).all() and logged["skipped_steps"] == [0, 0]


@pytest.mark.parametrize("method", FAST_ONES_FIRST)
def test_a_batch_of_one(workspace, method):
    """DPRD, which compares cases, then needs those of recent batches."""
    recent = {"memory": 2} if method == "DPRD" else {}
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={**METHODS[method], **recent})
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    store_if_read(workspace, method)
    trainer = make_trainer(trainer_class(method), plans, workspace)
    trainer.run_training()
    logged = trainer.logger.get_checkpoint()
    assert np.isfinite(logged["train_losses"]).all() and logged["skipped_steps"] == [0, 0]


@pytest.mark.parametrize("options", [{"wavelet": "db4"}, {"levels": 4}, {"wavelet": "sym5", "levels": 3}], ids=str)
def test_training_with_features_smaller_than_the_wavelet(workspace, options):
    """The deepest stage has features of about 3 x 5 x 4 voxels, and the filters have up to 10 taps."""
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None, **options})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["dcd"]).all()


@pytest.fixture
def read_only(tmp_path, request):
    """Make a folder read-only, even for root, whom permissions do not stop."""

    def protect(folder):
        command = ["mount", "--bind", str(folder), str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"nothing can be mounted here: {error}")
        request.addfinalizer(lambda: subprocess.run(["umount", "--lazy", str(folder)], check=True))
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)

    return protect


def test_a_read_only_results_folder(workspace, read_only):
    read_only(workspace.root / "nnUNet_results")
    with pytest.raises(
        OSError, match=f"^cannot write results into .*: {workspace.results} is read-only or belongs to another user$"
    ):
        make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT), workspace)


def test_a_file_where_results_belong(workspace):
    (workspace.results / FOLDER.format("DCD")).touch()
    with pytest.raises(OSError, match=r".*3d_fullres is read-only or belongs to another user$"):
        make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT), workspace)


@pytest.mark.parametrize("resume", [True, False])
def test_results_of_another_student_are_refused(workspace, resume):
    make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=SHORT), workspace).run_training()
    folder = workspace.results / FOLDER.format("NoKD")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    wider = workspace.plans("nnUNetPlans", training=SHORT, student={"reduction": 2})
    for fold in (0, 1):
        with pytest.raises(ValueError) as refused:
            make_trainer(nnUNetTrainerNoKD, wider, workspace, fold=fold, resume=resume)
        widths = r"another student (PlainConvUNet, [8, 16, 32] channels) than these plans ask for (PlainConvUNet, [16, "
        assert widths in str(refused.value) and "give the plans another plans_name, or remove" in str(refused.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for path in folder.glob("fold_0/*.pth"):
        path.unlink()
    make_trainer(nnUNetTrainerNoKD, wider, workspace)  # without checkpoints nothing can be lost


def test_a_checkpoint_of_another_trainer_is_refused(workspace):
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    with pytest.raises(
        ValueError, match="checkpoint_final.pth was not written by a trainer of nnunet_kd: train without"
    ):
        trainer.load_checkpoint(str(path))


def test_damaged_splits_are_named(workspace):
    path = workspace.preprocessed / "splits_final.json"
    path.write_text(path.read_text()[:20])
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    with pytest.raises(
        ValueError,
        match=r"splits_final.json: it is not valid JSON .* Remove the file unless .*: nnU-Net makes the same folds",
    ):
        trainer.run_training()


def test_truncated_plans_in_the_results_are_written_again(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": "same"})
    stop_within(make_trainer(nnUNetTrainerDCD, plans, workspace), 2)
    saved = workspace.results / FOLDER.format("DCD") / "plans.json"
    whole = saved.read_text()
    saved.write_text(whole[:1000])
    resumed = make_trainer(nnUNetTrainerDCD, plans, workspace, resume=True)
    resumed.load_checkpoint(str(saved.parent / "fold_0" / "checkpoint_latest.pth"))
    resumed.on_train_start()
    assert json.loads(saved.read_text()) == json.loads(whole)


# ---- plans of older versions


def old_plans(workspace, **block):
    """Return plans as nnU-Net 2.0 to 2.3 wrote them, without an architecture."""
    plans = workspace.plans("nnUNetPlans", **block)
    for content in plans["configurations"].values():
        arguments = content.pop("architecture")["arch_kwargs"]
        content |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": arguments["features_per_stage"][0],
            "unet_max_num_features": max(arguments["features_per_stage"]),
            "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
            "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [0] * len(content["patch_size"]),
            "pool_op_kernel_sizes": arguments["strides"],
            "conv_kernel_sizes": arguments["kernel_sizes"],
        }
    return plans


def plans_2_5(workspace, **block):
    """Return plans as nnU-Net 2.5 wrote them, with an architecture but without later keys."""
    plans = workspace.plans("nnUNetPlans", **block)
    known = {
        "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
        "image_reader_writer", "transpose_forward", "transpose_backward", "configurations",
        "experiment_planner_used", "label_manager", "foreground_intensity_properties_per_channel", "nnunet_kd",
    }  # fmt: skip
    per_configuration = {
        "data_identifier", "preprocessor_name", "batch_size", "patch_size", "median_image_size_in_voxels", "spacing",
        "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg",
        "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs", "resampling_fn_probabilities",
        "resampling_fn_probabilities_kwargs", "architecture", "batch_dice",
    }  # fmt: skip
    for content in plans["configurations"].values():
        for key in content.keys() - per_configuration:
            del content[key]
    return {key: value for key, value in plans.items() if key in known}


@pytest.mark.parametrize("older", [plans_2_5, old_plans])
def test_plans_of_an_older_nnunet(workspace, older):
    """Both the teacher and the student have such plans."""
    stock = older(workspace)
    (workspace.teacher / "plans.json").write_text(json.dumps(stock))
    plans = older(workspace, training=SHORT, method={"ramp": None})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    saved = json.loads((workspace.results / FOLDER.format("DCD") / "plans.json").read_text())
    network = saved["configurations"]["3d_fullres"]["architecture"]
    assert network["arch_kwargs"]["features_per_stage"] == [8, 16, 32]


def test_plans_that_nnunet_never_wrote(workspace):
    plans = old_plans(workspace, training=SHORT)
    for content in plans["configurations"].values():
        del content["UNet_class_name"]
    with pytest.raises(ValueError, match="configuration 2d has no 'architecture': plan the data set again"):
        make_trainer(nnUNetTrainerNoKD, plans, workspace)


# ---- two trainings in one folder


def hold(folder, ready, leave):
    lock = Lock(folder)
    ready.set()
    leave.wait()
    del lock


@pytest.mark.slow
def test_only_one_process_trains_in_a_folder(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    folder = workspace.results / FOLDER.format("NoKD") / "fold_0"
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, ready, leave))
    other.start()
    assert ready.wait(60)
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
    with pytest.raises(RuntimeError, match=rf"^another process trains in {folder} \(process {other.pid}\): wait"):
        trainer.run_training()
    other.kill()  # the system frees the lock
    other.join()
    make_trainer(nnUNetTrainerNoKD, plans, workspace).run_training()
    assert not (folder / "training.lock").exists() and (folder / "checkpoint_final.pth").is_file()


# ---- steps with gradients that are not finite


class Overflowing(torch.nn.Module):
    """nnU-Net's loss, but infinite in some steps."""

    def __init__(self, loss, steps):
        super().__init__()
        self.inner, self.steps, self.step = loss, steps, -1
        self.loss = loss.loss

    def forward(self, logits, target):
        if self.training and torch.is_grad_enabled():
            self.step += 1
        value = self.inner(logits, target)
        return value * float("inf") if torch.is_grad_enabled() and self.step in self.steps else value


@pytest.mark.parametrize("scaled", [True, False], ids=["as under AMP", "without a scaler"])
def test_a_step_that_overflows_is_skipped_and_counted(workspace, scaled):
    training = {**SHORT, "num_iterations_per_epoch": 3, "ema_decay": 0.5}
    plans = workspace.plans("nnUNetPlans", training=training, method={"ramp": None})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.initialize()
    if scaled:
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.loss = Overflowing(trainer.loss, {2})  # the first pass measures the shares of the terms
    weights = []
    step = trainer.train_step

    def watched(batch):
        numbers = step(batch)
        weights.append([own.detach().clone() for own in trainer.trained().student.parameters()])
        return numbers

    trainer.train_step = watched
    trainer.run_training()
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(weights)]
    assert same == [True, False, False, False, False]
    logged = trainer.logger.get_checkpoint()
    assert logged["skipped_steps"] == [1, 0] and np.isfinite(logged["train_losses"]).all()
    assert "skipped 1 of 3 steps: their gradients were not finite" in Path(trainer.log_file).read_text()
    if scaled:
        assert trainer.grad_scaler.get_scale() == 1.0  # halved, as in nnU-Net


@pytest.mark.slow
def test_a_diverged_training_stops_and_keeps_its_checkpoint(workspace):
    training = {**SHORT, "num_iterations_per_epoch": 30, "num_epochs": 4}
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=training), workspace)
    trainer.initialize()
    trainer.loss = Overflowing(trainer.loss, range(40, 200))
    with pytest.raises(RuntimeError, match=r"^the last 50 steps were skipped .* \(not finite: segmentation\)"):
        trainer.run_training()
    folder = workspace.results / FOLDER.format("NoKD") / "fold_0"
    content = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
    assert all(torch.isfinite(weight).all() for weight in content["network_weights"].values())
    assert content["logging"]["skipped_steps"] == [0, 20]
