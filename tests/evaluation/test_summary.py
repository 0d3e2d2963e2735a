import math
from dataclasses import replace

import numpy as np
import pytest

from nnunet_kd.evaluation.rows import Row
from nnunet_kd.evaluation.scores import Scores, compare
from nnunet_kd.evaluation.summary import cautions, metric_table, summary_table
from nnunet_kd.evaluation.table import Table
from tests.evaluation.figures import rows


def test_the_mean_of_a_case_is_over_its_structures():
    scores = Scores(rows(one=[0.2, 0.4, math.nan, 0.8, math.nan, math.nan]))
    np.testing.assert_allclose(scores.of("one"), [0.3, 0.8, math.nan])
    np.testing.assert_allclose(scores.of("one", structure="b"), [0.4, 0.8, math.nan])
    assert (scores.methods, scores.cases, scores.structures) == (["one"], ["c0", "c1", "c2"], ["a", "b"])


def test_the_mean_of_runs_is_the_mean_of_their_means():
    """The structure is absent; one run rightly leaves it out, and the other draws it."""
    runs = [rows(one=[0.2, math.nan, 0.8, 0.6]), rows(one=[0.6, 0.0, 0.8, math.nan])]
    scores = Scores([replace(row, seed=seed) for seed, run in enumerate(runs) for row in run])
    assert scores.seeds == {"one": [0, 1]} and scores.cases == ["c0", "c1"]
    np.testing.assert_allclose(scores.runs("one"), [[0.2, 0.7], [0.3, 0.8]])
    np.testing.assert_allclose(scores.of("one"), [0.25, 0.75])
    np.testing.assert_allclose(scores.of("one", structure="b"), [0.0, 0.6])
    assert scores.of("one").mean() == pytest.approx(np.mean([Scores(run).of("one").mean() for run in runs]))
    cells = dict(zip((table := metric_table(scores)).header, table.rows[0], strict=True))
    assert cells["a Dice (%)"].startswith("60.00 ") and cells["b Dice (%)"].startswith("30.00 ")  # (60 + 0) / 2


def test_a_structure_can_be_called_mean():
    made = [
        Row(row.method, row.case, {"a": "mean", "b": "b"}[row.structure], row.values) for row in rows(one=[0.2, 0.4])
    ]
    scores = Scores(made)
    assert scores.of("one") == pytest.approx(0.3) and scores.of("one", structure="mean") == pytest.approx(0.2)
    cells = dict(zip((table := metric_table(scores)).header, table.rows[0], strict=True))
    assert (cells["mean over cases, Dice (%)"], cells["mean Dice (%)"], cells["b Dice (%)"]) == (
        "30.00",
        "20.00",
        "40.00",
    )


def test_means_and_errors_are_shown():
    table = metric_table(Scores(rows(one=[0.2, 0.4, 0.6, 0.8])))
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells["mean over cases, Dice (%)"] == "50.00 ± 20.00"
    assert cells["a Dice (%)"] == "40.00 ± 20.00" and cells["b HD95 (mm)"] == "0.50 ± 0.00"


def test_methods_are_compared_with_the_baseline_and_the_teacher():
    result = compare(
        Scores(rows(base=[0.4, 0.4, 0.5, 0.5], kd=[0.5, 0.5, 0.6, 0.6], teacher=[0.6, 0.6, 0.7, 0.7])),
        "base",
        "teacher",
    )
    assert list(result) == ["kd", "teacher"]
    assert result["kd"].difference.value == pytest.approx(0.1) and result["kd"].gap.value == pytest.approx(0.5)
    assert result["teacher"].gap.value == pytest.approx(1)
    # Holm's correction does not count the teacher
    assert result["kd"].tests.wilcoxon_holm == result["kd"].tests.wilcoxon


def test_without_a_gap_no_share_is_shown():
    """The ratio is meaningless if the teacher is below the baseline, or above it only by chance."""
    base, kd = [0.4, 0.4, 0.5, 0.5, 0.6, 0.6], [0.6, 0.6, 0.7, 0.7, 0.8, 0.8]
    by_chance = [0.5, 0.5, 0.4, 0.4, 0.7, 0.7]
    below = [0.3, 0.3, 0.4, 0.4, 0.5, 0.5]
    for teacher in (by_chance, below):
        made = rows(base=base, kd=kd, teacher=teacher)
        result = compare(Scores(made), "base", "teacher")
        assert not result["teacher"].difference.low > 0 and math.isnan(result["kd"].gap.value)
        shown = [line for line in summary_table(made, "base", "teacher").splitlines() if line.startswith("| kd ")][-1]
        assert [cell.strip() for cell in shown.split("|")][-2] == "-"


def test_summary_has_every_method_and_no_tests_for_one():
    one = summary_table(rows(one=[0.2, 0.4]), "one")
    assert "1 cases" in one and "Wilcoxon" not in one and "20.00" in one
    two = summary_table(rows(one=[0.2, 0.4, 0.5, 0.6], two=[0.3, 0.5, 0.5, 0.7]), "one")
    assert "minus one [95 %]" in two and "| two " in two and "Holm" in two
    assert "Gap closed" not in two and "Gap closed" in summary_table(rows(one=[0.2], t=[0.3]), "one", "t")


def test_too_few_cases_for_a_test_cause_a_caution():
    """With five cases, no p is below 1/16, and Holm's correction multiplies this by the number of methods."""
    values = [0.1 + 0.01 * number for number in range(10)]  # two structures
    one = rows(base=values, kd=[2 * value for value in values])
    (said,) = cautions(Scores(one), "base")
    assert said.startswith("Too few cases for a test: of 5, Wilcoxon's cannot give a p below 0.0625, however large")
    text = summary_table(one, "base")
    assert f"**{said}**" in text and "Of 5 cases Wilcoxon's test cannot give a p below 0.0625." in text
    shown = [line for line in text.splitlines() if line.startswith("| kd ")][-1]
    assert "| 0.0625 " in shown

    more = rows(base=[*values, 0.5, 0.6], **{name: [2 * v for v in values] + [0.9, 0.8] for name in ("x", "y")})
    (said,) = cautions(Scores(more), "base")
    assert (
        "of 6, Wilcoxon's cannot give a p below 0.0312, nor Holm's correction for 2 methods one below 0.0625," in said
    )
    assert cautions(Scores(more), "base", teacher="y") == []  # the correction does not count the teacher
    many = rows(base=15 * [0.3, 0.5], kd=15 * [0.4, 0.6])
    assert cautions(Scores(many), "base") == [] and "cannot give" not in summary_table(many, "base")


def test_a_baseline_that_finds_nothing_causes_a_caution():
    """Almost any method would close almost all of the gap to such a baseline."""
    base = 20 * [0.002, 0.6]
    scores = Scores(rows(base=base, kd=20 * [0.8, 0.8], teacher=20 * [0.85, 0.85]))
    assert compare(scores, "base", "teacher")["kd"].gap.value > 0.9
    (said,) = cautions(scores, "base", "teacher")
    assert said.startswith("base finds next to nothing of a (mean Dice below 1 %): its training has failed or was too")
    assert "a difference to it, or a share of the gap, says little of the methods" in said
    (said,) = cautions(Scores(rows(base=20 * [0.8, 0.8], kd=base)), "base")
    assert said == "kd finds next to nothing of a (mean Dice below 1 %)."


def test_a_structure_that_no_reference_has_need_not_be_found():
    made = [
        replace(row, values={**row.values, "sensitivity": math.nan}) if row.structure == "a" else row
        for row in rows(base=20 * [0.0, 0.6], kd=20 * [0.0, 0.8])
    ]
    assert cautions(Scores(made), "base") == []


def test_table_is_markdown_and_html():
    table = Table(["method", "x"], [["a<b", "1"], ["c", "22"]])
    assert table.markdown().splitlines() == [
        "| method | x  |",
        "|--------|----|",
        "| a&lt;b | 1  |",
        "| c      | 22 |",
    ]
    assert "<td>a&lt;b</td><td>1</td>" in table.html() and table.html().count("<tr>") == 3
