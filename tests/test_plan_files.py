import json
import shlex
import subprocess
from pathlib import Path

import pytest

import nnunet_kd.plans
from nnunet_kd.cli import main
from nnunet_kd.evaluation.cost import configuration_cost
from nnunet_kd.nnunet.experiment import Experiment
from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.training.preparation import prepare
from tests.commands import run_command
from tests.datasets import layouts

FOLDER = Path(next(iter(nnunet_kd.plans.__path__)))
DATASETS = {
    "Dataset501_BraTS2024GLI": (4, 5, (101.945, 19.505), (6.381, 1.277)),
    "Dataset502_ISLES2022": (3, 2, (102.351, 17.707), (6.406, 1.149)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_parameters_equal_those_of_table_3_and_flops_are_those_of_the_page(name):
    page = (FOLDER / "README.md").read_text()
    channels, labels, teacher, student = DATASETS[name]
    dataset_json = {
        "channel_names": {str(i): str(i) for i in range(channels)},
        "labels": {"background": 0, **{str(i): i for i in range(1, labels)}},
    }
    for file, (millions, tera) in (("nnUNetResEncUNetPlans", teacher), ("nnUNetResEncUNetPlans_r4", student)):
        plans = json.loads((FOLDER / name / f"{file}.json").read_text())
        assert plans["plans_name"] == file and plans["dataset_name"] == name
        cost = configuration_cost(plans, "3d_fullres", dataset_json)
        assert round(cost.parameters / 1e6, 3) == millions
        assert f" {tera:.3f} " in page and f" {cost.flops / 1e12:.3f} " in page
        assert f" {1e12 * tera / cost.flops:.2f} " in page


@pytest.mark.parametrize("name", DATASETS)
def test_student_is_the_reduced_teacher(name):
    teacher, student = (
        json.loads((FOLDER / name / f"nnUNetResEncUNetPlans{suffix}.json").read_text()) for suffix in ("", "_r4")
    )
    assert student == student_plans(teacher, 4, name="nnUNetResEncUNetPlans_r4")


PUBLISHED = {
    "Dataset501_BraTS2024GLI": (3, "weight 0.01, ramp from epoch 150 over 800"),
    "Dataset502_ISLES2022": (0, "weight 0.05, ramp from epoch 100 over 300"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_those_of_the_authors_files(name):
    """The numbers of ``configs/dcd_*.yaml``, as a training reads them."""
    fold, weight_and_ramp = PUBLISHED[name]
    student, plans = (
        json.loads((FOLDER / name / f"nnUNetResEncUNetPlans_r4{suffix}.json").read_text())
        for suffix in ("", "_published")
    )
    block, usual = plans["nnunet_kd"], student["nnunet_kd"]
    assert {**plans, "plans_name": "", "nnunet_kd": usual} == {**student, "plans_name": ""}
    assert block["student"] == usual["student"]
    channels, labels = DATASETS[name][:2]
    dataset_json = {
        "channel_names": {str(i): str(i) for i in range(channels)},
        "labels": {"background": 0, **{str(i): i for i in range(1, labels)}},
    }
    made = prepare(nnUNetTrainerDCD, Experiment(plans, "3d_fullres", dataset_json), fold)
    training, (teacher,) = made.settings.training, made.settings.teachers
    assert (training.num_epochs, training.num_iterations_per_epoch, training.initial_lr) == (1000, 150, None)
    assert (training.ema_decay, training.early_stopping, training.final_validation) == (0.999, 60, "best")
    assert training.seed == 1234 and made.leakage is None
    assert (teacher.checkpoint, teacher.folds, teacher.plans) == ("checkpoint_best.pth", "same", None)
    (term,) = made.terms
    loss = (
        "DCDLoss(wavelet='db4', levels=3, bands='directional', reconstruct=True, level_weighting='level_mean', "
        "transform='published')"
    )
    assert str(term) == f"dcd: {weight_and_ramp}, {loss}, projection frozen" and term.stages is None
    assert f"{name[7:10]} 3d_fullres {fold} -p nnUNetResEncUNetPlans_r4_published" in readme_of(name)


def readme_of(name: str) -> str:
    """The commands that the page gives for BraTS, written for another data set and its fold."""
    text = (FOLDER / "README.md").read_text().replace("501", name[7:10])
    return text.replace("3d_fullres 3", f"3d_fullres {PUBLISHED[name][0]}")


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_stock_nnunet_preprocesses_with_them(name, tmp_path, monkeypatch, capsys):
    """Run the commands of plans/README.md in order up to the trainings, and check that these find what they need."""
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
        (tmp_path / folder).mkdir()
    kind = name.partition("_")[2]
    (tmp_path / "source").mkdir()
    layouts.LAYOUTS[kind](tmp_path / "source")
    assert main(["dataset", kind, str(tmp_path / "source"), "-np", "1"]) == 0
    readme = (FOLDER / "README.md").read_text().replace("Dataset501_BraTS2024GLI", name).replace("501", name[7:10])
    lines = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    place = next(number for number, line in enumerate(lines) if line.startswith("nnUNetv2_preprocess "))
    trainings = [shlex.split(line)[:4] for line in lines[place + 1 : place + 3]]
    assert trainings == 2 * [["nnUNetv2_train", name[7:10], "3d_fullres", "0"]]
    workers = {"nnUNetv2_extract_fingerprint": ["-np", "1"], "nnUNetv2_preprocess": ["-np", "1"]}
    folder = FOLDER.parent
    for line in lines[: place + 1]:
        words = shlex.split(line)
        if words[0] in workers:
            done = run_command([*words, *workers[words[0]]])
            assert done.returncode == 0, done.stdout
        elif words[0] == "cd":
            folder /= words[1]
        else:
            subprocess.run(["bash", "-c", line], cwd=folder, check=True)
    cases = json.loads((tmp_path / "nnUNet_raw" / name / "dataset.json").read_text())["numTraining"]
    identifier = json.loads((FOLDER / name / "nnUNetResEncUNetPlans_r4.json").read_text())
    identifier = identifier["configurations"]["3d_fullres"]["data_identifier"]
    assert len(list((tmp_path / "nnUNet_preprocessed" / name / identifier).glob("*.pkl"))) == cases
    capsys.readouterr()
    words = ["-d", name[7:10], "-p", "nnUNetResEncUNetPlans_r4", "-tr", "nnUNetTrainerNoKD", "--cases"]
    assert main(["doctor", *words]) == 0, capsys.readouterr().out
