"""The README and the pages of docs/ state the settings that the code has."""

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
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SETTINGS, TERMS_PAGE, TRAINERS, SAM = (
    (ROOT / "docs" / f"{page}.md").read_text()
    for page in ("reference/settings", "reference/terms", "reference/trainers", "howto/sam")
)


def plain(values):
    return json.loads(json.dumps(values))


def test_table_of_trainers():
    rows = re.findall(r"^\| `(nnUNetTrainer\w+)` \|", TRAINERS, flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "trainers").glob("nnUNetTrainer*.py"))


def test_table_of_terms():
    rows = dict(re.findall(r"^\| `(\w+)` \| (`weight`.*) \|$", TERMS_PAGE, flags=re.MULTILINE))
    assert rows.keys() == TERMS.keys()
    for name, row in rows.items():
        stated = {key: json.loads(value) for key, value in re.findall(r"`(\w+)` ((?:\[.*?\]|[^,])+)", row)}
        assert stated == plain(TERMS[name].keys), name


def test_every_term_is_explained():
    page = (ROOT / "docs" / "explanation" / "methods.md").read_text()
    headings = " ".join(re.findall(r"^## .*", page, flags=re.MULTILINE))
    assert all(f"`{name}`" in headings for name in TERMS)


def test_block_of_defaults():
    start = SETTINGS.index('"nnunet_kd": {\n')
    block = json.loads("{" + SETTINGS[start : SETTINGS.index("\n}\n", start) + 2] + "}")["nnunet_kd"]
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
    blocks = [json.loads(text) for text in re.findall(r'^"method": (\{[^{}]*\})$', SAM, flags=re.MULTILINE)]
    assert plain(asdict(settings)) in blocks


def test_newcomers_find_the_recipe():
    start = README.index("## Quick start")
    quick = README[start : README.index("## Which trainer", start)]
    given = parser().parse_args(["export", "nnunet", "-d", "501", "-o", "student.zip"])
    for text in (quick, parser().format_help(), given.tr, usual_trainer(PLANS, "2d")):
        assert RECIPE in text and "nnUNetTrainerDCD" not in text


def test_examples_of_method_are_valid():
    examples = re.findall(r'"method": (\{"terms".*\})$', TERMS_PAGE, flags=re.MULTILINE)
    assert examples
    for example in examples:
        assert build_terms((DCD,), json.loads(example), 1000)


def test_the_recipe():
    text = SETTINGS[SETTINGS.index("## The recipe") :]
    stated = re.search(r'^"training": (\{.*\})$', text, flags=re.MULTILINE)
    assert json.loads(stated[1]) == nnUNetTrainerKD.recipe and not nnUNetTrainerKD.terms
