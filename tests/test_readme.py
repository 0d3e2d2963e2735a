"""The README states the settings that the code has."""

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from nnunet_kd.cli import parser
from nnunet_kd.distillation.methods import DCD, TERMS, build_terms
from nnunet_kd.nnunet.planning import RECIPE, usual_trainer
from nnunet_kd.nnunet.settings import StudentSettings, TeacherSettings, TrainingSettings, read_settings
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.training.brainseg_dmif import BrainSegDMIFSettings
from nnunet_kd.training.kd_sam.settings import KDSAMSettings

PLANS = {"configurations": {"2d": {"architecture": {"network_class_name": "of.nnunet.PlainConvUNet"}}}}
README = (Path(__file__).parents[1] / "README.md").read_text()


def plain(values):
    return json.loads(json.dumps(values))


def test_table_of_terms():
    rows = dict(re.findall(r"^\| `(\w+)` \| (`weight`.*) \|$", README, flags=re.MULTILINE))
    assert rows.keys() == TERMS.keys()
    for name, row in rows.items():
        stated = {key: json.loads(value) for key, value in re.findall(r"`(\w+)` ((?:\[.*?\]|[^,])+)", row)}
        assert stated == plain(TERMS[name].keys), name


def test_block_of_defaults():
    start = README.index('    "nnunet_kd": {\n')
    block = json.loads("{" + README[start : README.index("\n    }\n", start) + 6] + "}")["nnunet_kd"]
    for section, kind in (("student", StudentSettings), ("teacher", TeacherSettings), ("training", TrainingSettings)):
        expected = {entry.name: getattr(kind(), entry.name) for entry in fields(kind)}
        expected.pop("leakage", None)  # written by the trainer
        assert block[section] == expected
    read_settings({"nnunet_kd": block})
    expected = plain(DCD.keys)
    expected.pop("stages")
    assert block["method"] == expected


@pytest.mark.parametrize("settings", [KDSAMSettings(checkpoint="FILE"), BrainSegDMIFSettings()])
def test_defaults_of_trainers_with_settings_of_their_own(settings):
    blocks = [json.loads(text) for text in re.findall(r'^    "method": (\{[^{}]*\})$', README, flags=re.MULTILINE)]
    assert plain(asdict(settings)) in blocks


def test_newcomers_find_the_recipe():
    start = README.index("## Quick start")
    quick = README[start : README.index("## What to expect", start)]
    given = parser().parse_args(["export", "nnunet", "-d", "501", "-o", "student.zip"])
    for text in (quick, parser().format_help(), given.tr, usual_trainer(PLANS, "2d")):
        assert RECIPE in text and "nnUNetTrainerDCD" not in text


def test_examples_of_method_are_valid():
    for example in re.findall(r'"method": (\{"terms".*\})$', README, flags=re.MULTILINE):
        assert build_terms((DCD,), json.loads(example), 1000)


def test_the_recipe():
    text = README[README.index("**The recipe.**") :]
    stated = re.search(r'^    "training": (\{.*\})$', text, flags=re.MULTILINE)
    assert json.loads(stated[1]) == nnUNetTrainerKD.recipe and not nnUNetTrainerKD.terms
