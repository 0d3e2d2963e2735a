import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_kd.plans
from nnunet_kd.cli import main
from nnunet_kd.evaluation.cost import configuration_cost
from nnunet_kd.nnunet.planning import student_plans
from tests.commands import entry_point
from tests.datasets import layouts
from tests.killing import run_killed

FOLDER = Path(next(iter(nnunet_kd.plans.__path__)))
DATASETS = {
    "Dataset501_BraTS2024GLI": (4, 5, 101.945, 6.381),
    "Dataset502_ISLES2022": (3, 2, 102.351, 6.406),
}


@pytest.mark.parametrize("name", DATASETS)
def test_parameters_equal_those_of_table_3(name):
    channels, labels, teacher, student = DATASETS[name]
    dataset_json = {
        "channel_names": {str(i): str(i) for i in range(channels)},
        "labels": {"background": 0, **{str(i): i for i in range(1, labels)}},
    }
    for file, millions in (("nnUNetResEncUNetPlans", teacher), ("nnUNetResEncUNetPlans_r4", student)):
        plans = json.loads((FOLDER / name / f"{file}.json").read_text())
        assert plans["plans_name"] == file and plans["dataset_name"] == name
        cost = configuration_cost(plans, "3d_fullres", dataset_json)
        assert round(cost.parameters / 1e6, 3) == millions


@pytest.mark.parametrize("name", DATASETS)
def test_student_is_the_reduced_teacher(name):
    teacher, student = (
        json.loads((FOLDER / name / f"nnUNetResEncUNetPlans{suffix}.json").read_text()) for suffix in ("", "_r4")
    )
    assert student == student_plans(teacher, 4, name="nnUNetResEncUNetPlans_r4")


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
    shell, preprocess = "\n".join(["set -e", *lines[:place]]), shlex.split(lines[place])
    trainings = [shlex.split(line)[:4] for line in lines[place + 1 : place + 3]]
    assert trainings == 2 * [["nnUNetv2_train", name[7:10], "3d_fullres", "0"]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", shell], cwd=FOLDER.parent, check=True, env={**os.environ, "PATH": path})
    ended = run_killed(entry_point, *preprocess, "-np", "1", log=tmp_path / "log", environment=dict(os.environ))
    assert ended.exit_code == 0, ended.output
    cases = json.loads((tmp_path / "nnUNet_raw" / name / "dataset.json").read_text())["numTraining"]
    identifier = json.loads((FOLDER / name / "nnUNetResEncUNetPlans_r4.json").read_text())
    identifier = identifier["configurations"]["3d_fullres"]["data_identifier"]
    assert len(list((tmp_path / "nnUNet_preprocessed" / name / identifier).glob("*.pkl"))) == cases
    capsys.readouterr()
    words = ["-d", name[7:10], "-p", "nnUNetResEncUNetPlans_r4", "-tr", "nnUNetTrainerNoKD", "--cases"]
    assert main(["doctor", *words]) == 0, capsys.readouterr().out
