"""Leakage is judged by a teacher's validation cases, whenever the folds are created and wherever it was trained."""

import json
import shutil
from pathlib import Path

import pytest

from nnunet_kd.cli import main
from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.teachers.leakage import validated_cases
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.trainers.nnUNetTrainerSAMKD import nnUNetTrainerSAMKD
from tests.conftest import SHORT, make_trainer, note_validated


def validated(fold: Path, *files: str) -> frozenset[str] | None:
    """Create the fold folder of a model whose summary names these files."""
    (fold / "validation").mkdir(parents=True, exist_ok=True)
    content = {"metric_per_case": [{"prediction_file": file} for file in files]}
    (fold / "validation" / "summary.json").write_text(json.dumps(content))
    return validated_cases(fold)


@pytest.mark.parametrize(
    ("file", "case"),
    [
        ("/home/me/nnUNet_results/fold_0/validation/head_001.nii.gz", "head_001"),
        ("D:\\\\nnUNet_results\\\\fold_0\\\\validation\\\\head_001.nii.gz", "head_001"),
        ("D:\\nnUNet_results\\fold_0/validation\\head_001.mha", "head_001"),
        ("validation/head_1.5mm.nrrd", "head_1.5mm"),
        ("validation/HEAD.NII.GZ", "HEAD"),
        ("validation/head_1.5mm_label.img", "head_1.5mm"),
        ("validation/head_1.5mm.other", "head_1.5mm"),
    ],
)
def test_a_case_is_recognised_with_any_separator_and_ending(tmp_path, file, case):
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": "_label.img"}))
    assert validated(tmp_path / "fold_0", file) == {case}


def test_nothing_is_known_of_a_model_that_was_not_validated(tmp_path):
    assert validated_cases(tmp_path) is None


def without_splits(workspace) -> list[str]:
    """Return the validation cases of fold 0 before the splits exist, as for a teacher from another machine."""
    splits = workspace.preprocessed / "splits_final.json"
    kept_back = json.loads(splits.read_text())[0]["val"]
    splits.unlink()
    return sorted(kept_back)


def notes(trainer) -> dict[str, str]:
    return recorded_leakage(json.loads((Path(trainer.output_folder_base) / "plans.json").read_text()))


@pytest.mark.parametrize(
    ("kind", "training"),
    [(nnUNetTrainerDCD, {}), (nnUNetTrainerNoKD, {"initial_weights": "teacher"}), (nnUNetTrainerSAMKD, {})],
    ids=["beside the student", "initial weights", "soft labels"],
)
def test_the_first_training_knows_what_its_teacher_has_seen(workspace, capsys, kind, training):
    """nnU-Net creates the folds when the training begins, long after the teacher was found."""
    kept_back = without_splits(workspace)
    if kind is nnUNetTrainerSAMKD:
        assert main(["soft-labels", "-d", "598", "--teacher", "-f", "0", "--disable_tta", "-device", "cpu"]) == 0
    plans = workspace.plans("nnUNetPlans", training={**SHORT, **training})
    doctor = ["doctor", "-d", "598", "-tr", kind.__name__]
    not_yet = (
        "whether the teacher has seen validation cases of fold 0 cannot be checked yet: nnU-Net makes splits_final"
    )
    assert main(doctor) == 0
    assert not_yet in capsys.readouterr().out

    note_validated(workspace.teacher / "fold_0", ["other_0", "other_1"])
    trainer = make_trainer(kind, plans, workspace)
    trainer.on_train_start()
    seen = (
        f"LEAKAGE: the teacher was trained without keeping back 2 of 2 validation cases of fold 0 ({kept_back[0]} and "
    )
    assert notes(trainer)["0"].startswith(seen) and notes(trainer)["0"].count("LEAKAGE") == 1
    assert Path(trainer.log_file).read_text().count(f": {seen}") == 1
    assert main(doctor) == 1
    assert f"FAIL  {seen}" in capsys.readouterr().out


def test_a_teacher_of_another_system_and_format_causes_no_warning(workspace, capsys):
    doctor = ["doctor", "-d", "598"]
    assert main(doctor) == 0
    assert "cases of fold 0 cannot be checked: nnU-Net has not validated the teacher" in capsys.readouterr().out
    kept_back = without_splits(workspace)
    validated(workspace.teacher / "fold_0", *(f"D:\\\\results\\\\{case}.mha" for case in kept_back))
    trainer = make_trainer(nnUNetTrainerDCD, workspace.plans("nnUNetPlans", training=SHORT), workspace)
    trainer.on_train_start()
    assert notes(trainer) == {} and "LEAKAGE" not in Path(trainer.log_file).read_text()
    assert main(doctor) == 0
    assert "cannot be checked" not in capsys.readouterr().out


def test_a_fold_that_nnunet_draws_is_checked_too(workspace):
    """nnU-Net draws a random split if the file does not contain the fold."""
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_7")
    note_validated(workspace.teacher / "fold_7", ["head_000"])
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace, fold=7)
    trainer.on_train_start()
    assert "without keeping back" in notes(trainer)["7"] and "of 2 validation cases of fold 7" in notes(trainer)["7"]
