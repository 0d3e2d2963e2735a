import json

import pytest

from nnunet_kd.evaluation.commands import Commands
from nnunet_kd.evaluation.study import ABLATIONS, Study, list_runs
from nnunet_kd.settings import read_settings
from nnunet_kd.training.methods import TERMS
from tests.conftest import DATASET, FOLDERS, SHORT


def study_of(workspace, plans):
    folders = tuple(workspace.root / name for name in FOLDERS)
    return Study(DATASET, "3d_fullres", plans, folders, workspace.root / "study", "cpu")


def test_runs_come_fold_by_fold():
    runs = list_runs("P", ["NoKD", "DCD"], [0, 1], [None], None)
    assert [(run.fold, run.trainer, run.plans, run.seed) for run in runs] == [
        (0, "nnUNetTrainerNoKD", "P", None),
        (0, "nnUNetTrainerDCD", "P", None),
        (1, "nnUNetTrainerNoKD", "P", None),
        (1, "nnUNetTrainerDCD", "P", None),
    ]
    assert [run.plans for run in list_runs("P", ["DCD"], [0], [0, 7], None)] == ["P_seed0", "P_seed7"]


@pytest.mark.parametrize("name", ABLATIONS)
def test_rows_of_an_ablation_are_settings_of_its_method(name):
    runs = list_runs("P", ["NoKD"], [0], [None], name)
    method, rows = ABLATIONS[name]
    assert [run.method for run in runs] == ["NoKD", *(f"{method} {row}" for row in rows)]
    assert len({run.plans for run in runs}) == len(runs)
    for run in runs[1:]:
        TERMS[name].changed(run.numbers, "here").build(1000, "here")


def test_an_ablation_that_is_not_there():
    with pytest.raises(ValueError, match="there is no ablation 'dc': choose one of dcd, dual_self"):
        list_runs("P", ["NoKD"], [0], [None], "dc")


def test_plans_of_a_run_keep_the_teacher_and_change_seed_and_numbers(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"levels": 2})
    study = study_of(workspace, plans)
    *_, run = list_runs("nnUNetPlans", ["DCD"], [0], [5], "dcd")
    study.write_plans([run])
    written = json.loads((workspace.preprocessed / "nnUNetPlans_dcd-without-idwt_seed5.json").read_text())
    settings = read_settings(written)
    assert written["plans_name"] == "nnUNetPlans_dcd-without-idwt_seed5"
    assert settings.training.seed == 5 and settings.training.num_epochs == 2
    assert settings.teachers[0].plans == "nnUNetPlans"
    assert settings.method == {"levels": 2, "reconstruct": False}
    assert plans["nnunet_kd"]["method"] == {"levels": 2}  # the given ones stay
    study.write_plans([run])
    other = study_of(workspace, workspace.plans("nnUNetPlans", training=SHORT))
    with pytest.raises(FileExistsError, match="is there with other settings"):
        other.write_plans([run])


def test_students_plans_keep_their_own_source(workspace):
    plans = workspace.plans("small", student={"source_plans": "nnUNetPlans"})
    (run,) = list_runs("small", ["DCD"], [0], [1], None)
    assert read_settings(study_of(workspace, plans).plans_of(run)).teachers[0].plans == "nnUNetPlans"


def test_cases_and_images_of_a_fold(workspace):
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    splits = json.loads((workspace.preprocessed / "splits_final.json").read_text())
    assert study.cases_of(1) == sorted(splits[1]["val"])
    images = sorted(path.name for path in study.images_of(0).iterdir())
    assert len(images) == 3 * len(splits[0]["val"]) and images[0].endswith("_0000.nii.gz")
    study.images_of(0)  # a second time
    with pytest.raises(ValueError, match="has 5 folds, there is no fold 9"):
        study.cases_of(9)
    (workspace.raw / "imagesTr" / images[0]).unlink()
    (study.out / "images" / "fold_0" / images[0]).unlink()
    with pytest.raises(ValueError, match="has no image"):
        study.images_of(0)


def test_commands_show_progress_and_keep_their_output(tmp_path, capsys):
    commands = Commands(tmp_path)
    script = "print('a: Epoch 0'); print('b: Pseudo dice 0.5'); print('noise')"
    commands.run("log", "python", "-c", script, epochs=3)
    printed = capsys.readouterr().out
    assert "    epoch 1 of 3" in printed and "Pseudo dice 0.5" in printed and "noise" not in printed.split("\n", 1)[1]
    assert "noise" in (tmp_path / "log.log").read_text()
    with pytest.raises(RuntimeError, match=r"python failed \(.*broken\); its output is in .*log.log"):
        commands.run("log", "python", "-c", "raise SystemExit('broken')")
    with pytest.raises(FileNotFoundError, match="nnUNetv2_nothing is not installed"):
        commands.run("log", "nnUNetv2_nothing")
