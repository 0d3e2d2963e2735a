"""Students whose initial weights come from a teacher of other channels, labels or spacing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import SHORT, copy_of, make_trainer, stop_within
from tests.training.foreign_teachers import (
    change,
    change_configuration,
    copied,
    with_ignored_channel,
    with_split_labels,
)

MERGED = {"oedema": ["oedema_left", "oedema_right"]}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "enhancing": 2}, "regions_class_order": [1, 2]}


def started(workspace, kind=nnUNetTrainerKD, start="pruned", **teacher):
    """Return a trainer that has fitted its initial weights, and its log."""
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "initial_weights": start}, teacher=teacher)
    trainer = make_trainer(kind, plans, workspace)
    trainer.on_train_start()
    log = Path(trainer.log_file).read_text()
    trainer.on_train_end()
    shutil.rmtree(trainer.output_folder_base)
    return trainer, log


def shares(log):
    """Return the least and the largest share of the teacher's variance that a layer explains."""
    return re.search(r"which explain (\S+) to (\S+) of its variance", log).groups()


@pytest.fixture(scope="module")
def own_start(trained_workspace, tmp_path_factory):
    """Return the student that starts from the teacher of the workspace, and the log."""
    with pytest.MonkeyPatch.context() as patch:
        workspace = copy_of(trained_workspace, tmp_path_factory.mktemp("own"), patch)
        trainer, log = started(workspace)
    return trainer.trained().student.eval(), log


@pytest.mark.slow
def test_a_channel_that_the_teacher_ignores_can_be_missing(workspace, own_start):
    """The start is bit for bit that from the same teacher without the channel."""
    trainer, log = started(workspace, folder=str(with_ignored_channel(workspace)))
    expected = own_start[0].state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in trainer.trained().student.state_dict().items())
    assert "initial weights: the teacher has channels T1, T1C, FLAIR without DWI" in log
    assert shares(log) == shares(own_start[1])


@pytest.mark.parametrize("start", ["pruned", "reconstructed"])
def test_the_teacher_reads_the_students_channels(workspace, start):
    """Names are matched by default; the settings can say which channels they are."""
    folder = with_ignored_channel(workspace)
    first = "encoder.stages.0.0.convs.0.conv.weight"

    def read(**teacher):
        training = {**SHORT, "initial_weights": start}
        plans = workspace.plans("nnUNetPlans", training=training, teacher=teacher)
        return make_trainer(nnUNetTrainerKD, plans, workspace).sources.start.teacher.state_dict()[first]

    expected = read()
    assert torch.equal(read(folder=str(folder)), expected)
    assert torch.equal(read(folder=str(folder), channels=[2, 3, 1]), expected)
    t1, _, flair = expected.unbind(1)
    swapped = torch.stack((flair, torch.zeros_like(t1), t1), 1)
    assert torch.equal(read(folder=str(folder), channels=[1, 0, 2]), swapped)


@pytest.mark.slow
def test_merged_and_dropped_labels_give_the_start_of_a_teacher_without_them(workspace, own_start):
    """The probabilities are the same, so the fit of the heads finds the same weights up to its tolerance."""
    own, own_log = own_start
    expected = own.state_dict()
    foreign, log = started(workspace, folder=str(with_split_labels(workspace)), label_map=MERGED)
    student = foreign.trained().student.eval()
    found = student.state_dict()
    assert {name: weight.shape for name, weight in found.items()} == {n: w.shape for n, w in expected.items()}
    for name in ("encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.1.conv.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    assert "structures oedema from oedema_left, oedema_right; enhancing from enhancing" in log
    dice = r"Dice on other training patches \(the teacher's\): (.+)"
    theirs = [re.search(dice, one)[1] for one in (own_log, log)]
    assert re.findall(r"\((.+?)\)", theirs[0]) == re.findall(r"\((.+?)\)", theirs[1])  # the teacher's, mapped
    images = torch.randn(1, 3, *foreign.configuration_manager.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given, wanted = (one(images)[0].softmax(1) for one in (student, own))
    assert float((given - wanted).abs().mean()) < 0.02


@pytest.mark.slow
def test_regions_are_fitted_to_unions_of_the_teachers_labels(workspace):
    folder = copied(workspace)
    change(workspace.preprocessed / "dataset.json", **REGIONS)
    trainer, log = started(workspace, folder=str(folder), label_map={"whole": ["oedema", "enhancing"]})
    student = trainer.trained().student.eval()
    assert student.decoder.seg_layers[-1].out_channels == 2
    assert "structures whole from oedema, enhancing; enhancing from enhancing" in log
    assert re.search(r"whole \d\.\d\d \(\d\.\d\d\), enhancing \d\.\d\d \(\d\.\d\d\)", log)


@pytest.mark.slow
def test_a_teacher_of_another_spacing_sees_resampled_patches(workspace, own_start):
    folder = copied(workspace)
    spacing = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]["spacing"]
    change_configuration(folder, spacing=[spacing[0], spacing[1] / 2, spacing[2] / 1.5])
    foreign, log = started(workspace, folder=str(folder))
    assert "the teacher has 1 x 2 x 1.5 of its voxels in one of the student's" in log
    found = foreign.trained().student.state_dict()
    name = "encoder.stages.0.0.convs.1.conv.weight"
    assert not torch.equal(found[name], own_start[0].state_dict()[name])
    assert all(torch.isfinite(weight).all() for weight in found.values())
    assert "layers fitted to the teacher's" in log and "Dice on other training patches" in log


@pytest.mark.slow
def test_a_training_from_a_foreign_teacher_resumes_without_it(workspace):
    """The record keeps the maps, and the note of leakage says that the teacher may have seen anything."""
    folder = with_split_labels(workspace)
    change(folder / "plans.json", dataset_name="Dataset123_Colleague")
    teacher = {"folder": str(folder), "label_map": MERGED}
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher=teacher)
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    stop_within(trainer, 3)
    results = Path(trainer.output_folder_base)
    saved = torch.load(f"{trainer.output_folder}/checkpoint_latest.pth", weights_only=False)["nnunet_kd"]["record"]
    assert len(saved["teacher_checkpoints"]) == 1
    note = recorded_leakage(json.loads((results / "plans.json").read_text()))["0"]
    assert note.startswith("LEAKAGE is possible: the teacher was trained on Dataset123_Colleague")
    shutil.rmtree(folder)
    again = make_trainer(nnUNetTrainerKD, plans, workspace, resume=True)
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    again.run_training()
    assert recorded_leakage(json.loads((results / "plans.json").read_text())) == {"0": note}
    log = max(Path(trainer.output_folder).glob("training_log*")).read_text()
    said = json.loads(log.rpartition(": settings ")[2].partition("\n")[0])
    assert said["teachers"][0]["label_map"] == MERGED
    assert "resumes with other settings" not in log


def test_the_folds_of_another_data_set_are_not_the_students(workspace):
    """Which cases a teacher has seen is certain only if it was trained on the student's data set."""
    folder = copied(workspace)
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folder": str(folder), "folds": [0]})
    same = make_trainer(nnUNetTrainerKD, plans, workspace, fold=1).sources.start.leakage
    assert same.startswith("LEAKAGE: the teacher (fold 0) was trained on validation cases of student fold 1.")
    change(folder / "plans.json", dataset_name="Dataset123_Colleague")
    other = make_trainer(nnUNetTrainerKD, plans, workspace, fold=1).sources.start.leakage
    assert other.startswith("LEAKAGE is possible: the teacher was trained on Dataset123_Colleague, whose folds are not")
    assert same.count("LEAKAGE") == other.count("LEAKAGE") == 1


def forget_references(workspace) -> None:
    """Give every case nnU-Net's ignore label everywhere, as if it had no reference."""
    labels = {**workspace.dataset_json["labels"], "ignore": 3}
    change(workspace.preprocessed / "dataset.json", labels=labels)
    folder = workspace.preprocessed / "nnUNetPlans_3d_fullres"
    for case in sorted(path.stem for path in folder.glob("*.pkl")):
        images, segmentation, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
        properties["class_locations"] = {key: np.zeros((0, 4), int) for key in (1, 2, (-1, 0, 1, 2))}
        images, ignored = np.array(images), np.full_like(np.array(segmentation), 3)
        for path in folder.glob(f"{case}*"):
            path.unlink()
        nnUNetDatasetBlosc2.save_case(images, ignored, properties, str(folder / case))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warning")  # nnU-Net's, about cases without annotated voxels
def test_without_references_the_log_tells_the_agreement_with_the_teacher(workspace):
    forget_references(workspace)
    trainer, log = started(workspace, folder=str(workspace.teacher))
    line = r"agreement with the teacher \(Dice\) on other training patches, which have no reference: oedema \d\.\d\d, "
    assert re.search(line, log) and "Dice on other training patches (" not in log
    assert trainer.trained().student.decoder.seg_layers[-1].out_channels == 3


def refused(workspace, message, kind=nnUNetTrainerKD, training=SHORT, **teacher):
    plans = workspace.plans("nnUNetPlans", training=training, teacher=teacher)
    with pytest.raises(ValueError, match=message) as caught:
        make_trainer(kind, plans, workspace)
    assert "\n" not in str(caught.value)
    assert not list(workspace.results.glob("nnUNetTrainer*D__*"))


def test_networks_whose_channels_cannot_be_mapped_are_refused(workspace):
    folder = copied(workspace)
    change(folder / "plans.json", transpose_forward=[2, 1, 0])
    refused(workspace, r"its axis order is \[2, 1, 0\], the student's \[0, 1, 2\]$", folder=str(folder))
    change(folder / "plans.json", transpose_forward=[0, 1, 2])
    change(workspace.preprocessed / "dataset.json", channel_names={"0": "T1", "1": "T1C", "2": "DWI"})
    refused(
        workspace,
        r"^nnunet_kd.teacher.channels: the channel map names channel 3, but the teacher has channels 0 to 2",
        folder=str(folder),
        channels=[0, 1, 3],
    )
    change(workspace.preprocessed / "dataset.json", labels={"background": 0, "tumour": 1, "vessel": 2})
    refused(workspace, r"^nnunet_kd.teacher.label_map: the teacher has no structure for 'tumour'", folder=str(folder))
    wrong = {"tumour": ["edema"], "vessel": ["enhancing"]}
    refused(workspace, "label_map: the label map names 'edema', but the", folder=str(folder), label_map=wrong)


def test_other_layers_are_refused_although_channels_differ(workspace):
    folder = with_ignored_channel(workspace)
    plans = json.loads((folder / "plans.json").read_text())
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    student = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folder": str(folder)})
    own = student["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    own["n_conv_per_stage"] = [one + 1 for one in arguments["n_conv_per_stage"]]
    with pytest.raises(ValueError, match="initial_weights: the student has other layers .*; set it to null for random"):
        make_trainer(nnUNetTrainerKD, student, workspace)


def test_a_teacher_beside_the_student_must_have_its_inputs_and_outputs(workspace):
    folder = with_ignored_channel(workspace)
    refused(workspace, "its number of input channels is 4, the student's 3", nnUNetTrainerDCD, folder=str(folder))
    message = "nnunet_kd.teacher.channels is for a teacher that gives initial weights or stored soft labels"
    refused(workspace, message, nnUNetTrainerDCD, channels=[1, 0, 2])
    message = "nnunet_kd.teacher.label_map is for a teacher that gives initial weights"
    swapped = {"oedema": ["enhancing"], "enhancing": ["oedema"]}
    refused(workspace, message, nnUNetTrainerDCD, label_map=swapped)
    selected = {**SHORT, "initial_weights": "teacher"}  # these weights are not fitted
    refused(workspace, "its number of input channels is 4", nnUNetTrainerNoKD, selected, folder=str(folder))
    make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans", teacher={"channels": [0, 1, 2]}), workspace)
