"""``nnunet_kd dataset`` converts, lists, and refuses wrong arguments."""

import json
import os
import subprocess
import sys

import pytest

from nnunet_kd.cli import main
from nnunet_kd.datasets.table import DATASETS
from tests.commands import printed_command, run_command
from tests.datasets import layouts
from tests.datasets.converting import read


def test_a_number_nnunet_has_under_another_name_is_taken(tmp_path, capsys, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    source = tmp_path / "source"
    source.mkdir()
    layouts.busi(source)
    (tmp_path / "nnUNet_results" / "Dataset510_Mine").mkdir(parents=True)
    assert main(["dataset", "BUSI", str(source)]) == 1
    assert "nnU-Net has Dataset510_Mine already: choose another number with -d" in capsys.readouterr().err
    assert not (tmp_path / "nnUNet_raw").exists()
    (tmp_path / "nnUNet_results" / "Dataset510_BUSI").mkdir()
    assert main(["plan", "-d", "510"]) == 1
    assert "several data sets 510 in its three folders: Dataset510_BUSI, Dataset510_Mine" in capsys.readouterr().err


def test_command_line(tmp_path, capsys, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    layouts.tcga_lgg(source)
    raw, preprocessed = tmp_path / "nnUNet_raw", tmp_path / "nnUNet_preprocessed"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    assert main(["dataset", "tcgalgg", str(source), "-d", "777", "-np", "1"]) == 0
    printed = capsys.readouterr().out
    assert "18 cases for training, 0 for testing in" in printed and "-d 777 --verify" in printed
    assert (preprocessed / "Dataset777_TCGALGG" / "splits_final.json").is_file()
    assert main(["dataset", "TCGALGG", str(source), "-d", "777"]) == 1
    assert "already exists: choose another number with -d" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_it_prints(tmp_path, capsys, monkeypatch):
    """Where --raw is another folder than nnUNet_raw."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    layouts.busi(tmp_path / "source")
    assert main(["dataset", "BUSI", str(tmp_path / "source"), "--raw", str(tmp_path / "my raw"), "-np", "1"]) == 0
    variable, *words = printed_command(capsys.readouterr().out, "nnUNet_raw=")
    variables = {**os.environ, **dict([variable.split("=")]), "nnUNet_n_proc_DA": "1"}
    done = run_command([*words, "-c", "2d", "-np", "1", "-npfp", "1"], variables)
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "nnUNet_preprocessed" / "Dataset510_BUSI" / "nnUNetPlans_2d").glob("*.pkl"))) == 6


@pytest.mark.parametrize(
    ("name", "words", "labels", "channels"),
    [
        ("BraTS2021", ["--regions"], ["background", "WT", "TC", "ET"], 4),
        ("FCD2023", ["--t2"], ["background", "FCD"], 3),
        ("BUSI", ["--classes"], ["background", "benign", "malignant"], 1),
        ("Synapse", ["--organs", "8"], 9, 1),
    ],
)
def test_options_of_the_command(converted, tmp_path, name, words, labels, channels):
    root, _ = converted
    assert main(["dataset", name, str(root / name), "--raw", str(tmp_path), "-np", "1", *words]) == 0
    (folder,) = tmp_path.glob(f"Dataset*_{name}")
    description = json.loads((folder / "dataset.json").read_text())
    assert labels in (list(description["labels"]), len(description["labels"]))
    assert len(description["channel_names"]) == channels


def test_grids_and_volumes_of_the_command(converted, tmp_path):
    root, made = converted
    shapes = {}
    for grid in ("flair", "dwi"):
        words = ["--raw", str(tmp_path / grid), "-np", "1", "--grid", grid]
        assert main(["dataset", "ISLES2022", str(root / "ISLES2022"), *words]) == 0
        label = next((tmp_path / grid / made["ISLES2022"].folder.name / "labelsTr").iterdir())
        shapes[grid] = read(label)[0].shape
    assert shapes == {"flair": layouts.FLAIR_SHAPE, "dwi": layouts.SHAPE}
    words = ["--raw", str(tmp_path), "-np", "1", "--volumes"]
    assert main(["dataset", "TCGALGG", str(root / "TCGALGG"), *words]) == 0
    labels = list((tmp_path / made["TCGALGG"].folder.name / "labelsTr").iterdir())
    assert len(labels) == 6 and read(labels[0])[0].shape == (3, 40, 36)


def test_the_command_leaves_out_what_is_bad(tmp_path, capsys):
    source = tmp_path / "source"
    layouts.busi(source)
    (source / "malignant" / "malignant (1)_mask.png").write_bytes(b"no picture")
    words = ["dataset", "BUSI", str(source), "--raw", str(tmp_path / "raw"), "-np", "1"]
    assert main(words) == 1
    assert "--skip-bad leaves such cases out" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0
    printed = capsys.readouterr()
    assert "malignant" in printed.out + printed.err
    names = [path.name for path in (tmp_path / "raw").glob("Dataset*/labelsTr/*")]
    assert len(names) == 5 and not any("malignant" in name and "1" in name for name in names)


def test_list(capsys):
    assert main(["dataset", "--list"]) == 0
    printed = capsys.readouterr().out
    for dataset in DATASETS.values():
        assert f"{dataset.id}  {dataset.name}" in printed and dataset.where in printed
    assert "--regions" in printed and "NETC, SNFH, ET, RC" in printed


def test_help_says_which_data_set_takes_which_option(capsys):
    with pytest.raises(SystemExit) as left:
        main(["dataset", "--help"])
    assert left.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--regions BraTS2024GLI, BraTS2021: regions" in printed
    assert "--grid {flair,dwi} ISLES2022: grid" in printed and "--organs {8,13} Synapse: how many" in printed


def test_other_commands_do_not_wait_for_the_data_sets():
    code = "import sys, nnunet_kd.cli as c; c.parser().format_help(); print('SimpleITK' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["BraTS2024GL", "."], "there is no data set 'BraTS2024GL': did you mean BraTS2024GLI?"),
        (["HC18", "."], "there is no data set 'HC18': did you mean FetalHeadHC18?"),
        (["BUSI"], "give NAME and SOURCE, or --list"),
        (["BUSI", "nowhere"], "there is no folder nowhere"),
        (["BUSI", "."], "has no case of BUSI. Expected: {benign,malignant,normal}"),
        (["BUSI", ".", "--regions"], "--regions is not for BUSI, only for BraTS2024GLI and BraTS2021"),
        (["Synapse", ".", "--grid", "flair"], "--grid is not for Synapse, only for ISLES2022"),
        (["BUSI", ".", "-d", "0"], "a data set's number is at least 1, got 0"),
        (["BUSI", ".", "-np", "0"], "-np must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert main(["dataset", *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
