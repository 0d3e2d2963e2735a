import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from nnunet_kd.evaluation.pictures import Slice, draw_disagreement, worst_slice
from nnunet_kd.study.report import Report, draw_curves, write_report
from tests.evaluation.figures import measured, rows


class Checker(HTMLParser):
    """A parser that checks that every opened tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.elsewhere = [], 0, []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.images += tag == "img"
        self.elsewhere += [
            value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def report():
    dice = {"teacher": [0.8, 0.9, 0.7, 0.8], "NoKD": [0.5, 0.6, 0.4, 0.5], "D<CD": [0.6, 0.8, 0.5, 0.6]}
    return Report(
        title="a & b",
        facts={"Data": "x < y"},
        warnings=["LEAKAGE: all of it"],
        rows=[
            *rows(teacher=dice.pop("teacher")),
            *(replace(row, seed=seed) for seed in (4, 7) for row in rows(**dice)),
        ],
        baseline="NoKD",
        teacher="teacher",
        costs={
            "teacher": measured(16_000_000, 4.0),
            "NoKD": measured(1_000_000, 1.0),
            "D<CD": measured(1_000_000, 1.0),
        },
        curves={"NoKD": {"train_losses": [1.0, 0.5]}, "D<CD": {"train_losses": [1.0, 0.4], "dcd": [float("nan"), 3.0]}},
        pictures={"Cases": Figure(figsize=(1, 1))},
    )


def test_the_page_is_self_contained(report, tmp_path):
    page, markdown = write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    checker = Checker()
    checker.feed(page.read_text())
    assert checker.open == [] and checker.images == 3 and checker.elsewhere == []
    for content in (page.read_text(), markdown.read_text()):
        assert "LEAKAGE: all of it" in content and "gap closed (%) [95 %]" in content
    assert "D<CD" not in page.read_text() and "D&lt;CD" in page.read_text()


def test_costs_are_compared_with_the_teachers(report, tmp_path):
    markdown = write_report(report, tmp_path)[1].read_text()
    (line,) = [line for line in markdown.splitlines() if line.startswith("| NoKD") and "1/16" in line]
    assert [cell.strip() for cell in line.split("|")[2:]] == [
        "1.000 (1/16.0)",
        "0.010 (1/16.0)",
        "0.080 (1/16.0)",
        "256 (1/1.0)",
        "1.000 (1/4.0)",
        "",
    ]


def test_a_student_that_costs_more_than_the_teacher(report, tmp_path):
    slow = replace(report, costs={**report.costs, "NoKD": measured(1_000_000, 6.0)})
    assert "| 6.000 (1.5 times) " in write_report(slow, tmp_path)[1].read_text()


def test_seeds_have_a_table(report, tmp_path):
    gains = {("NoKD", 7): 0.01, ("D<CD", 4): 0.02, ("D<CD", 7): 0.05}
    rows = [
        replace(row, values={**row.values, "dice": row.values["dice"] + gains.get((row.method, row.seed), 0.0)})
        for row in report.rows
    ]
    text = write_report(replace(report, rows=rows), tmp_path)[1].read_text()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.partition("## Seeds")[2].splitlines()]
    header = ["method", "seed 4", "seed 7", "standard deviation", "minus NoKD", "t-test p over seeds"]
    assert header in table and ["NoKD", "50.00", "51.00", "0.71", "", ""] in table
    other = next(line for line in table if line and line[0].startswith("D"))
    expected = stats.ttest_rel([0.645, 0.675], [0.50, 0.51]).pvalue
    assert other[1:] == ["64.50", "67.50", "2.12", "+15.50", f"{expected:.4f}"]
    assert "and over the seeds of every method" in text
    once = write_report(replace(report, rows=[row for row in rows if row.seed != 7]), tmp_path)[1].read_text()
    assert "## Seeds" not in once and "bootstrap over cases. t-test" in once


def test_both_formats_have_the_same_cells(report, tmp_path):
    page, markdown = (path.read_text() for path in write_report(report, tmp_path))
    cells = re.findall(r"<t[dh]>(.*?)</t[dh]>", page)
    shown = [cell.strip() for line in markdown.splitlines() if line.startswith("| ") for cell in line.split("|")[1:-1]]
    assert cells == shown


def test_curves_of_methods_with_different_terms():
    figure = draw_curves({"a": {"x": [1.0], "y": [2.0]}, "b": {"x": [1.0], "z": [float("nan")], "w": [0.0]}})
    assert [axes.get_title() for axes in figure.axes] == ["x", "y", "z", "w"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 1, 1]


def test_slice_with_most_disagreement():
    reference = np.zeros((5, 6, 7), int)
    reference[1] = 1
    wrong = reference.copy()
    wrong[3, :2] = 2
    assert worst_slice(reference, {"a": reference, "b": wrong}, 0) == 3
    assert worst_slice(reference, {"a": reference}, 0) == 1  # without errors, the slice with most foreground


def test_errors_are_coloured_by_kind():
    reference, found = np.zeros((20, 20), int), np.zeros((20, 20), int)
    reference[5:10, 5:10] = 1
    found[5:10, 7:12] = 1
    found[5, 7] = 2
    image = np.random.default_rng(0).random((20, 20))
    figure = draw_disagreement({"case": Slice(image, reference, {"method": found}, 1.0)}, {"a": (1,), "b": (2,)})
    shown = figure.axes[5].images[1].get_array()
    assert [(shown == kind).sum() for kind in (1, 2, 3)] == [10, 10, 1]
