"""The record, the sentences and the page of benchmarks/study."""

import json
import math
from dataclasses import replace

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from matplotlib.image import imread
from PIL import Image

from benchmarks.study import parts, readme_picture
from benchmarks.study.figures import PartFigures, StaleFindingError, each, each_signed, losses_below, require
from benchmarks.study.findings import find, wrapped
from benchmarks.study.page import (
    BENCHMARKS,
    README,
    README_MARKS,
    differences,
    page,
    readme_section,
    shown_gap,
    with_section,
    write_page,
)
from benchmarks.study.parts import METHODS, PARTS, STRONG, Part, at_once
from benchmarks.study.record import STUDENT, Record
from nnunet_kd.distillation import methods
from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.rows import Row, write_rows
from nnunet_kd.evaluation.statistics import Interval
from nnunet_kd.nnunet.experiment import find_trainer
from nnunet_kd.nnunet.settings import BLOCK, read_settings
from nnunet_kd.study.ablations import rows_of_ablation
from nnunet_kd.study.runs import PREFIX, TEACHER, rows_of_file

SHIFTS = {"one": -0.1, "two": 0.1}


def compared(folder, dice):
    """Write the metrics of two cases as ``nnunet_kd compare`` does, with a missing HD95 in one of them."""
    folder.mkdir(exist_ok=True)
    rows = [
        Row(method, case, "tumour", {**dict.fromkeys(METRICS, 0.5), "dice": value + shift, "hd95": hd95})
        for method, value in dice.items()
        for (case, shift), hd95 in zip(SHIFTS.items(), (3.0, math.nan), strict=True)
    ]
    write_rows(rows, folder)
    return folder


def filled(name, folder, dice, seeds):
    """Fill a record with a run of every row and seed; methods that ``dice`` does not name get the baseline's Dice."""
    for seed in seeds:
        record = Record(name, folder / "study" / "runs")
        each = {row: dice.get(row, dice["NoKD"]) + 0.02 * seed for row in record.missing(seed)}
        record.add(compared(folder / "compared", {"teacher": dice["teacher"], **each}), seed, 40)


def test_a_record_continues_where_it_was(tmp_path):
    record = Record("ablation", tmp_path)
    rows = list(PARTS["ablation"].rows)
    assert record.missing(0) == rows and record.state() == f"0 of {3 * len(rows)} runs"
    record.add(compared(tmp_path / "compared", {"teacher": 0.7, "NoKD": 0.5, STRONG: 0.6}), 0, 40)
    record = Record("ablation", tmp_path)
    assert record.missing(0) == rows[2:] and record.missing(1) == rows and record.whole_seeds() == []
    assert '"x"' not in record.path.read_text()  # the path on the machine
    assert record.scores() is None
    record.add(compared(tmp_path / "compared", {"teacher": 0.7, **dict.fromkeys(rows[2:], 0.4)}), 0, 40)
    record = Record("ablation", tmp_path)
    assert record.whole_seeds() == [0] and record.state() == f"{len(rows)} of {3 * len(rows)} runs"
    one, two = record.rows(STRONG, 0)
    assert (one.case, one.structure, one.values["dice"], one.values["hd95"]) == ("one", "tumour", 0.5, 3.0)
    assert two.values["dice"] == 0.7 and math.isnan(two.values["hd95"])


def test_a_run_that_two_parts_share_is_trained_once(tmp_path):
    filled("brats_r4", tmp_path, {"teacher": 0.7, "NoKD": 0.5, STRONG: 0.6}, [0])
    record = Record("ablation", tmp_path / "study" / "runs")
    assert record.missing(0) == list(record.part.rows)[2:] and record.rows(STRONG, 0)[0].values["dice"] == 0.5
    record.add(compared(tmp_path / "compared", {"teacher": 0.7, **dict.fromkeys(record.missing(0), 0.4)}), 0, 40)
    assert Record("ablation", tmp_path / "study" / "runs").whole_seeds() == [0]
    assert len(record.path.read_text().splitlines()) == len(record.part.rows) - 2
    assert len(Record("brats_r8", tmp_path / "study" / "runs").missing(0)) == len(METHODS)


def measured(seconds, parameters=16_000_000, peak=2**20):
    return Measured(Cost(parameters, 10**9, 10**6), 8.0, seconds, peak, "CPU, 2 threads", 2)


def test_parts_with_the_same_network_share_its_costs(tmp_path):
    record = Record("ablation", tmp_path)
    assert record.costs() is None
    record.add_costs(measured(2.0), measured(0.5, 10**6))
    Record("hippocampus_r4", tmp_path).add_costs(measured(8.0), measured(4.0))
    costs = Record("brats_r4", tmp_path).costs()
    assert costs == {TEACHER: measured(2.0), STUDENT: measured(0.5, 10**6)}
    assert Record("brats_r8", tmp_path).costs() is None


def test_a_record_knows_its_teacher_and_its_settings(tmp_path, monkeypatch):
    filled("ablation", tmp_path, {"teacher": 0.7, "NoKD": 0.5}, [0])
    with pytest.raises(ValueError, match="runs has runs of DCD's ablation, .* with another teacher: remove them"):
        filled("ablation", tmp_path, {"teacher": 0.71, "NoKD": 0.5}, [1])
    record, summary = Record("ablation", tmp_path / "study" / "runs"), tmp_path / "validation" / "summary.json"
    record.check_teacher(tmp_path, 40)  # not validated by nnU-Net
    summary.parent.mkdir()
    for dice, epochs, right in ((0.7, 40, True), (0.71, 40, False), (0.7, 60, False)):
        cases = [{"metrics": {"1": {"Dice": value}}} for value in (dice - 0.1, dice + 0.1, math.nan)]
        summary.write_text(json.dumps({"metric_per_case": cases}))
        if right:
            record.check_teacher(tmp_path, epochs)
            continue
        with pytest.raises(ValueError, match="with another teacher: remove them"):
            record.check_teacher(tmp_path, epochs)
    changed = {**PARTS["ablation"].rows, STRONG: {"trainer": "DCD", "method": {"weight": 0.2}}}
    part = PARTS["ablation"]
    monkeypatch.setitem(PARTS, "ablation", Part(part.title, part.short, part.data, 4, changed))
    assert Record("ablation", tmp_path / "study" / "runs").missing(0) == [STRONG]


def test_a_changed_default_makes_another_run(tmp_path, monkeypatch):
    filled("brats_r4", tmp_path, {"teacher": 0.7, "NoKD": 0.5}, [0])
    lower = methods.FITNETS.changed({"weight": methods.FITNETS.numbers["weight"] / 2})
    changes = {"nnUNetTrainerFitNets": {"terms": (lower,)}, "nnUNetTrainerKD": {"recipe": {"ema_decay": 0.5}}}
    changed = {name: type(name, (find_trainer(name),), change) for name, change in changes.items()}
    kept = parts.trainer_class
    monkeypatch.setattr(parts, "trainer_class", lambda method: changed.get(f"nnUNetTrainer{method}") or kept(method))
    record = Record("brats_r4", tmp_path / "study" / "runs")
    assert record.missing(0) == ["FitNets", "KD"]
    assert "fitnets: weight 0.5" in record.part.description("FitNets")
    assert record.part.description("KD") == "nnUNetTrainerKD; ema_decay 0.5"
    assert record.part.description("NoKD") == "nnUNetTrainerNoKD"


def test_a_run_without_a_teacher_has_no_teacher_precision():
    part = replace(PARTS["brats_r4"], precision="bfloat16")
    with_precision = {name for name in METHODS if "precision" in part.settings(name)}
    assert {*METHODS} - with_precision == {"NoKD", "NoKD, averaged", "DualSelfKD", "KD"}
    assert part.settings("NoKD") == PARTS["brats_r4"].settings("NoKD")
    assert part.settings("DCD") == {**PARTS["brats_r4"].settings("DCD"), "precision": "bfloat16"}


@pytest.fixture
def readme(tmp_path):
    """Return a README with an outdated table."""
    path = tmp_path / "README.md"
    path.write_text("before\n\n" + "\n| old |\n\n".join(README_MARKS) + "\nafter\n")
    return path


def section_in(readme):
    return readme.read_text().partition(README_MARKS[0])[2].partition(README_MARKS[1])[0].strip()


def test_page_and_picture_of_the_complete_seeds(tmp_path, readme):
    write_page(tmp_path, readme)
    text = (tmp_path / "study.md").read_text()
    assert "|" not in text and "study.png" not in text and not (tmp_path / "study.png").exists()
    assert section_in(readme) == ""
    filled("brats_r4", tmp_path, {"teacher": 0.7, "NoKD": 0.5, "DCD": 0.6}, [0])
    filled("hippocampus_r8", tmp_path, {"teacher": 0.8, "NoKD": 0.6, "CWD": 0.55}, [0, 1, 2])
    filled("ablation", tmp_path, {"teacher": 0.7, "NoKD": 0.5}, [0, 2])
    Record("ablation", tmp_path / "study" / "runs").add_costs(measured(2.0), measured(0.5, 10**6))
    with pytest.raises(StaleFindingError, match="do not show that DCD, weight 1, CWD, DCD and FreeKD are the losses"):
        write_page(tmp_path, readme)  # the hippocampus has all seeds; the rest is written
    text = (tmp_path / "study.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    short = f"{PARTS['brats_r4'].short}, 1 seed", f"{PARTS['hippocampus_r8'].short}, 3 seeds"
    assert lines[0] == ["method", f"{short[0]}: Dice (%)", "gap closed (%)", f"{short[1]}: Dice (%)", "gap closed (%)"]
    table = {line[0]: line[1:] for line in lines[2 : 3 + len(METHODS)]}
    assert list(table) == ["teacher", *METHODS]
    assert table["teacher"] == ["70.00 ± 10.00", "", "80.00 ± 10.00", ""]
    assert table["NoKD"] == ["50.00 ± 10.00", "", "62.00 ± 10.00", ""]
    assert table["DCD"] == ["60.00 ± 10.00", "50 [50, 50]", "62.00 ± 10.00", "0 [0, 0]"]
    assert table["CWD"] == ["50.00 ± 10.00", "0 [0, 0]", "57.00 ± 10.00", "-28 [-31, -25]"]
    count = len(METHODS)
    assert f"{PARTS['brats_r4'].title} ({count + 2} of {3 * count} runs); " in text  # two come from the ablation
    assert f"{PARTS['hippocampus_r8'].title} (" not in text
    assert text.count("\n### Accuracy\n") == 3 and text.count("\n### Seeds\n") == 2 and "Further" not in text
    assert ["CWD", "55.00", "57.00", "59.00", "2.00", "-5.00", "-"] in lines and "seed 0, 2" in text
    assert text.index(PARTS["brats_r4"].title) < text.index(PARTS["ablation"].title)
    assert "](study.png)" in text
    assert text.count("\n### Cost\n") == 2 and ["NoKD", "1.000 (1/16.0)"] in [line[:2] for line in lines]
    assert "| below -100" not in text and "minus DCD, weight 1 [95 %]" in text
    shown = json.loads(Image.open(tmp_path / "study.png").text["Description"])
    assert shown[short[0]]["DCD"] == [10.0, 10.0, 10.0] and shown[short[1]]["CWD"][0] == -5.0
    picture = imread(tmp_path / "study.png")
    assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05


def test_every_row_is_valid(tmp_path):
    for name, part in PARTS.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(part.rows))
        for row in rows_of_file(path):
            trainer = parts.trainer_class(row.trainer.removeprefix(PREFIX))
            methods.build_terms(trainer.terms, row.settings.get("method", {}), 20)
            read_settings({BLOCK: {"training": dict(row.settings.get("training", {}))}})


def test_the_widths_of_the_readme_picture():
    """The boxes of the picture are those of the networks whose parameters it states."""
    part = PARTS[readme_picture.PART]
    for name, factor in ((TEACHER, 1), (STUDENT, part.reduction)):
        network = PlainConvUNet(
            4, 4, [w // factor for w in readme_picture.WIDTHS], torch.nn.Conv3d, 3, [1, 2, 2, 2], 2, 4, 2,
            conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, deep_supervision=True,
        )  # fmt: skip
        counted = sum(one.numel() for one in network.parameters())
        assert counted == Record(readme_picture.PART).costs()[name].network.parameters


def test_the_readme_has_five_rows(tmp_path, readme):
    filled("brats_r4", tmp_path, {"teacher": 0.7, "NoKD": 0.5, "DCD": 0.6}, [0])
    write_page(tmp_path, readme)
    text = readme.read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section_in(readme).splitlines()]
    assert lines[0] == ["mean Dice (%)", PARTS["brats_r4"].short] and len(lines) == 2 + 5
    assert [line[1] for line in lines[2:]] == ["70.0", "50.0", "50.0 (0 %)", "50.0 (0 %)", "50.0 (0 %)"]
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert with_section(text, section_in(readme)) == text
    with pytest.raises(ValueError, match="no section to replace between <!-- written by"):
        with_section("no marks", "| new |")


def test_our_page_is_up_to_date():
    """Running ``python -m benchmarks.study`` would change nothing."""
    records = {name: Record(name) for name in PARTS}
    findings = find(records)
    assert not findings.stale and findings.above_table and findings.below_table and findings.in_readme
    finished = {name for name, record in records.items() if record.is_finished()}
    assert findings.notes.keys() == finished - {"spread"} and len(finished) > 6
    assert (BENCHMARKS / "study.md").read_text() == page(records, findings)
    assert README.read_text() == with_section(README.read_text(), readme_section(records, findings))
    assert (README.parent / "docs" / "picture.svg").read_text() == findings.picture
    drawn = json.loads(Image.open(BENCHMARKS / "study.png").text["Description"])
    assert drawn == json.loads(json.dumps(differences(records)))


def test_a_part_of_one_seed_is_finished_after_that_seed(tmp_path, readme):
    filled("tuning", tmp_path, {"teacher": 0.7, "NoKD": 0.5}, [0])
    write_page(tmp_path, readme)
    text = (tmp_path / "study.md").read_text()
    unfinished = next(line for line in text.splitlines() if line.startswith("Not finished"))
    assert PARTS["tuning"].title not in unfinished
    assert PARTS["spread"].title in unfinished


def test_the_ablation_equals_that_of_compare():
    rows = {f"{STRONG}, {row.name.removeprefix('DCD ')}": row.settings["method"] for row in rows_of_ablation("dcd", [])}
    part = {name: row["method"] for name, row in PARTS["ablation"].rows.items() if name not in METHODS}
    assert part == {name: {**at_once(1.0), **method} for name, method in rows.items()}


def test_sentences_follow_the_runs(tmp_path):
    dice = {"teacher": 0.7, "NoKD": 0.5, STRONG: 0.4, "KD": 0.6, "FitNets": 0.49}
    filled("brats_r8", tmp_path, dice, [0, 1, 2])
    part = PartFigures(Record("brats_r8", tmp_path / "study" / "runs"))
    assert part.gap("KD") == pytest.approx(100 * 0.10 / 0.18)
    assert losses_below(part) == (
        "On average DCD, weight 1 is 10.0 points (in every seed) below NoKD, FitNets 1.0 (in every seed); LogitsKD, "
        "CWD, IFVD, FreeKD, DualSelfKD and DCD + logits are level with it."
    )


def test_figures_that_contradict_a_sentence():
    assert each([3.86, 0.0, -0.04]) == "3.9, 0.0 and 0.0" and each_signed([1, -0.04, -2.55]) == "+1.0, 0.0 and -2.5"
    with pytest.raises(StaleFindingError, match=r"-0\.100 .*not negative"):
        each([1.0, -0.1])
    require(True, "anything")
    with pytest.raises(StaleFindingError, match="the kept runs do not show that it helps: rewrite that sentence"):
        require(False, "it helps")


def test_paragraphs_are_wrapped():
    text = wrapped(["word " * 30, "- item " + "word " * 30, "- item", f"{'word ' * 22}word `a b c`", "89 %"])
    assert max(map(len, text.splitlines())) <= 120 and "\n  word" in text and "\n`a b c`" in text
    assert text.count("\n\n") == 3 and "\n- item\n\n" in text


def test_a_share_far_below_zero_is_not_shown_as_a_number():
    assert shown_gap(Interval(0.734, 0.47, 0.956)) == "73 [47, 96]"
    assert shown_gap(Interval(-1.0, -2.5, 0.2)) == "-100 [-250, 20]"
    assert shown_gap(Interval(-4.54, -8.06, -0.24)) == "below -100"
    assert shown_gap(Interval(math.nan, math.nan, math.nan)) == "-"
