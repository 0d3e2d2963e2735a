import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from scipy import stats

from nnunet_kd.evaluation.page import Gallery, Picture
from nnunet_kd.evaluation.scores import Scores, compare
from nnunet_kd.study.figures import draw_curves, draw_pairs, draw_volumes
from nnunet_kd.study.report import Report, write_report
from nnunet_kd.study.verdict import verdicts
from tests.evaluation.figures import counted, measured, rows


class Checker(HTMLParser):
    """A parser that checks that every opened tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.images, self.charts, self.elsewhere = [], 0, 0, []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.charts += tag == "svg"
        self.images += tag == "img"
        self.elsewhere += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "xlink:href") and not value.startswith(("data:", "#"))
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
        pictures=Gallery(
            "Cases", "a note", {"c0": [Picture("KD", "70 %", np.zeros((4, 4, 4), np.uint8))]}, {"a": "#E69F00"}
        ),
    )


def test_the_page_is_self_contained(report, tmp_path):
    page, markdown = write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    checker = Checker()
    checker.feed(page.read_text())
    assert checker.open == [] and checker.elsewhere == [] and (checker.images, checker.charts) == (1, 4)
    for content in (page.read_text(), markdown.read_text()):
        assert "LEAKAGE: all of it" in content and "gap closed (%) [95 %]" in content
    assert "D<CD" not in page.read_text() and "D&lt;CD" in page.read_text()


def test_costs_are_compared_with_the_teachers(report, tmp_path):
    markdown = write_report(report, tmp_path)[1].read_text()
    (line,) = [line for line in markdown.splitlines() if line.startswith("| NoKD, D") and "1/16" in line]
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


def test_a_verdict_for_every_method(report):
    """The interval is that of the table, and what is uncertain is said."""
    scores = Scores(report.rows)
    compared = compare(scores, "NoKD", "teacher")
    said = verdicts(scores, compared, "NoKD", "teacher", report.costs)
    gap = compared["D<CD"].gap
    assert said == [
        "Over 2 cases and 2 seeds, the mean Dice of NoKD, the baseline, is 50.0 % [45.0, 55.0], and that of the "
        "teacher 80.0 % [75.0, 85.0].",
        f"D<CD closes {100 * gap.value:.0f} % [{100 * gap.low:.0f}, {100 * gap.high:.0f}] of the gap to the teacher "
        "with 1/16 of its parameters.",
    ]
    assert 0.4 < gap.value < 0.45


def test_a_verdict_without_a_gap():
    invented = rows(teacher=[0.6, 0.6, 0.4, 0.4], NoKD=[0.5, 0.5, 0.5, 0.5], KD=[0.6, 0.6, 0.5, 0.5])
    scores = Scores(invented)
    costs = {"teacher": measured(10, 1.0), "KD": measured(20, 1.0)}
    said = verdicts(scores, compare(scores, "NoKD", "teacher"), "NoKD", "teacher", costs)
    assert said[1:] == [
        "KD differs from NoKD by +5.0 [+0.0, +10.0] points of Dice with 2 times the teacher's parameters; the "
        "difference from NoKD may be chance.",
        "There is no gap to speak of: the teacher differs from NoKD by +0.0 [-10.0, +10.0] points of Dice.",
    ]
    alone = Scores([row for row in invented if row.method != "teacher"])
    said = verdicts(alone, compare(alone, "NoKD"), "NoKD", None, {})
    assert said == [
        "Over 2 cases, the mean Dice of NoKD, the baseline, is 50.0 % [50.0, 50.0].",
        "KD differs from NoKD by +5.0 [+0.0, +10.0] points of Dice; the difference from NoKD may be chance.",
    ]


def test_what_was_found_comes_before_the_tables(report, tmp_path):
    page, markdown = (path.read_text() for path in write_report(report, tmp_path))
    order = ["closes", "LEAKAGE", "Difference from NoKD", "Mean Dice, with 95 %", "a note", "Every case", "<table>"]
    found = [page.index(words) for words in order]
    assert found == sorted(found)
    assert markdown.index(" closes ") < markdown.index("LEAKAGE") < markdown.index("| method")


def test_volumes_are_those_of_every_segmentation():
    figure = draw_volumes(counted(a=[(10, 20), (30, 30)], b=[(40, 0), (5, 15)]), ["a", "b"], "a", None)
    (axes,) = figure.axes
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "None"]
    assert points == [[[15, -200 / 3], [30, 0]], [[20, 200], [10, -100]]]
    middle = [line.get_ydata()[0] for line in axes.lines if line.get_color() != "#8C8C8C"]
    assert middle[1:] == pytest.approx([50, 50 - 1.96 * 150 * 2**0.5, 50 + 1.96 * 150 * 2**0.5])
    assert draw_volumes(rows(a=[0.5, 0.5]), ["a"], "a", None) is None  # files of earlier versions have no counts


@pytest.mark.parametrize("method", ["KD", "DCD with a published transform", "nnUNetTrainerWithALongName"])
def test_names_below_the_lines_of_cases_do_not_overlap(method, monkeypatch):
    """However large the letters are that others have set, as nnU-Net's plots do."""
    monkeypatch.setitem(matplotlib.rcParams, "xtick.labelsize", 27.5)
    names = ["NoKD", method, "teacher"]
    figure = draw_pairs(Scores(counted(**{name: [(30, 50), (40, 50)] for name in names})), "NoKD")
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in (*axes.get_xticklabels(), axes.xaxis.label) if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 4
    assert not [(a, b) for a in range(4) for b in range(a) if boxes[a].overlaps(boxes[b])]
