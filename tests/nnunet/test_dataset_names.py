import json

import pytest

from nnunet_kd.cli import main
from nnunet_kd.cli.dataset_folder import dataset_name, no_plans
from nnunet_kd.nnunet.dataset_names import are_confused, dataset_number, is_dataset_name
from tests.datasets import layouts

NAMES = {"Dataset501_Heads": 501, "Dataset777": 777, "Dataset1234_X": 1234, "Dataset012_a-b c": 12, "Dataset777X": 777}


@pytest.mark.parametrize("name", NAMES)
def test_the_number_in_a_name(name):
    assert is_dataset_name(name) and dataset_number(name) == NAMES[name]


@pytest.mark.parametrize("name", ["Dataset", "Dataset12_X", "Heads", "dataset501_X", "Dataset501_X/..", "501", ""])
def test_invalid_names_are_refused(name):
    assert not is_dataset_name(name)
    with pytest.raises(ValueError, match="the name of a data set must look like Dataset501_Name, got"):
        dataset_number(name)


def test_names_that_nnunet_confuses():
    """nnU-Net searches for names that start with Dataset123."""
    for name, other, confused in (
        ("Dataset123_A", "Dataset123_B", True),
        ("Dataset123_A", "Dataset1234_B", True),
        ("Dataset777", "Dataset777_B", True),
        ("Dataset123_A", "Dataset124_B", False),
        ("Dataset1234_A", "Dataset1235_B", False),
        ("Dataset123_A", "notes", False),
    ):
        assert are_confused(name, other) is are_confused(other, name) is confused


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.mark.parametrize(("number", "name"), [("777", "Dataset777"), ("1234", "Dataset1234_X")])
def test_commands_find_the_data_set_and_name_it_in_their_advice(folders, capsys, number, name):
    folder = folders / "nnUNet_preprocessed" / name
    folder.mkdir()
    assert dataset_name(number) == dataset_name(name) == name
    plan = f"Fix: nnUNetv2_plan_and_preprocess -d {number}"
    assert no_plans(folder / "nnUNetPlans.json").endswith(plan)
    for given in (number, name):
        for words in (["plan"], ["soft-labels", "--teacher"], ["compare", "-m", "NoKD", "-o", str(folders / "study")]):
            assert main([words[0], "-d", given, *words[1:]]) == 1
            assert capsys.readouterr().err.endswith(f"{folder}/nnUNetPlans.json. {plan}\n")
        assert main(["export", "nnunet", "-d", given, "-o", str(folders / "x.zip")]) == 1
        assert f"nnUNet_results/{name}/nnUNetTrainer" in capsys.readouterr().err
    assert main(["doctor", "-d", number]) == 1
    assert f"{folder}/nnUNetPlans.json. {plan}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("there", "number", "refused"),
    [
        ("Dataset777", 777, True),
        ("Dataset1234_X", 123, True),
        ("Dataset123_X", 1234, True),
        ("Dataset1235_X", 1234, False),
    ],
)
def test_a_data_set_that_nnunet_would_confuse_with_another_is_refused(folders, capsys, there, number, refused):
    source = folders / "source"
    layouts.busi(source)
    (folders / "nnUNet_results" / there).mkdir()
    words = ["dataset", "BUSI", str(source), "-np", "1", "-d", str(number)]
    assert main(words) == (1 if refused else 0)
    if refused:
        assert f"nnU-Net has {there} already: choose another number with -d" in capsys.readouterr().err
        (folders / "nnUNet_results" / there).rename(folders / "nnUNet_raw" / there)
        assert main([*words, "--raw", str(folders / "nnUNet_raw")]) == 1
    else:
        assert f"-d {number} --verify" in capsys.readouterr().out
        content = json.loads((folders / "nnUNet_raw" / f"Dataset{number}_BUSI" / "dataset.json").read_text())
        assert content["numTraining"] == 6
