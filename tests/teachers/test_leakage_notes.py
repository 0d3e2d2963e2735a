"""A teacher that has seen validation cases is recorded in the student's results, fold by fold."""

import json
import shutil
from pathlib import Path

from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerFitNets import nnUNetTrainerFitNets
from tests.conftest import SHORT, make_trainer, note_validated, stop_within
from tests.teachers.refused import edit


def test_a_teacher_of_another_fold_is_recorded_as_leakage(workspace):
    (workspace.teacher / "fold_0").rename(workspace.teacher / "fold_1")
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [1]}, method={"ramp": None})
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.on_train_start()
    log = next((workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_0").glob("training_log*"))
    warning = "LEAKAGE: the teacher (fold 1) was trained on validation cases of student fold 0"
    assert warning in log.read_text()
    assert notes(workspace)["0"].startswith(warning)


def notes(workspace):
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres"
    return recorded_leakage(json.loads((folder / "plans.json").read_text()))


def test_every_fold_keeps_its_own_note(workspace):
    """All folds share one plans.json, and validating a finished training again needs no teacher."""
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [0]}, method={"ramp": None})
    make_trainer(nnUNetTrainerDCD, plans, workspace, fold=1).run_training()
    make_trainer(nnUNetTrainerDCD, plans, workspace, fold=0).on_train_start()
    assert list(notes(workspace)) == ["1"]
    shutil.rmtree(workspace.teacher)
    again = make_trainer(nnUNetTrainerDCD, plans, workspace, fold=1, resume=True)
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres" / "fold_1"
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.on_train_start()
    assert list(notes(workspace)) == ["1"] and "(fold 0)" in notes(workspace)["1"]
    assert "LEAKAGE" in max(folder.glob("training_log*")).read_text()


def test_a_note_is_kept_when_another_teacher_continues(workspace):
    """The student keeps what it learnt from the first teacher."""
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    leaking = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [1]}, method={"ramp": None})
    stop_within(make_trainer(nnUNetTrainerDCD, leaking, workspace), 3)
    noted = notes(workspace)
    assert noted["0"].startswith("LEAKAGE: the teacher (fold 1)")
    for plans in (leaking, workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None})):
        again = make_trainer(nnUNetTrainerDCD, plans, workspace, resume=True)
        again.load_checkpoint(f"{again.output_folder}/checkpoint_latest.pth")
        again.on_train_start()
        assert notes(workspace) == noted  # once
        again._lock.free()
    make_trainer(nnUNetTrainerDCD, plans, workspace).on_train_start()  # a new training
    assert notes(workspace) == {}


def test_folds_that_begin_together_keep_their_notes(workspace):
    """Each fold writes the plans that it read before it waited for its first batches."""
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [0]}, method={"ramp": None})
    trainers = [make_trainer(nnUNetTrainerDCD, plans, workspace, fold=fold) for fold in (1, 2)]
    file = Path(trainers[0].output_folder_base) / "plans.json"
    trainers[0].on_train_start()
    before = file.read_text()
    trainers[1].on_train_start()
    file.write_text(before)  # as if the first fold wrote last
    assert list(notes(workspace)) == ["1"]
    for trainer in trainers:
        trainer.on_train_end()
    assert sorted(notes(workspace)) == ["1", "2"] and "fold 2" in notes(workspace)["2"]

    again = make_trainer(nnUNetTrainerDCD, plans, workspace, fold=1)
    again.on_train_start()
    file.write_text(before[:100])  # as if another fold were writing it
    again.on_train_end()
    assert "the note of leakage may be lost" in Path(again.log_file).read_text()
    assert (Path(again.output_folder) / "checkpoint_final.pth").is_file()


def test_a_teacher_that_learnt_from_a_leaking_one_leaks_too(workspace):
    (workspace.teacher / "fold_0").rename(workspace.teacher / "fold_1")
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"folds": [1]}, method={"ramp": None})
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    plans = workspace.plans("nnUNetPlans", teacher={"trainer": "nnUNetTrainerDCD"}, method={"ramp": None})
    (leak,) = make_trainer(nnUNetTrainerFitNets, plans, workspace).sources.leakage()
    assert "That teacher's student is the teacher here." in leak


def test_a_teacher_of_another_data_set_can_leak(workspace):
    edit(workspace.teacher / "plans.json", dataset_name="Dataset999_Other")
    (leak,) = make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans"), workspace).sources.leakage()
    assert leak.startswith("LEAKAGE is possible: the teacher was trained on Dataset999_Other, whose folds")


def test_a_teacher_of_other_folds_leaks(workspace):
    """The data set has been split again since the teacher was trained."""
    path = workspace.preprocessed / "splits_final.json"
    splits = json.loads(path.read_text())
    note_validated(workspace.teacher / "fold_0", splits[0]["val"])
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"ramp": None})
    assert not make_trainer(nnUNetTrainerDCD, plans, workspace).sources.leakage()
    case = splits[0]["train"].pop()
    splits[0]["val"].append(case)
    path.write_text(json.dumps(splits))
    make_trainer(nnUNetTrainerDCD, plans, workspace).on_train_start()
    seen = f"1 of 3 validation cases of fold 0 ({case})"
    assert notes(workspace)["0"].startswith(f"LEAKAGE: the teacher was trained without keeping back {seen}. The")
