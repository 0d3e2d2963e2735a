"""Names of cases, methods and structures are shown as text, whatever they contain."""

import csv
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_kd.evaluation.folders import find_cases
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.pictures import Slice, draw_comparison, draw_disagreement
from nnunet_kd.evaluation.rows import Row, write_rows
from nnunet_kd.evaluation.scores import Scores
from nnunet_kd.evaluation.summary import summary_table
from nnunet_kd.evaluation.text import in_figure, in_html, in_markdown
from nnunet_kd.study.report import Report, draw_accuracy_against_cost, draw_curves, write_report
from tests.evaluation.figures import measured

NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</td></tr></table><script src=//evil></script>",
    "</style></title><script>1</script>",
    "&lt;script&gt;",
    "a|b||c",
    "*bold* `code` \\",
    "two\nlines\r\n# and a heading\n\n<b>",
    "[click](javascript:alert(1))",
    "![x](http://evil/pixel.png)",
    "<!--",
    "-->]]>",
    "$\\frac{$",
    "$x^2$",
    "\\$5",
    "_hidden",
    "{brackets} %s {0}",
    "\x1b[31mred\x00",
    "\udcff",
    "a" * 5000,
    "",
]
PAGE = ("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "div", "img")
TABLE = ("table", "thead", "tbody", "tr", "th", "td")


class Inert(HTMLParser):
    """Check that a page contains only our elements and attributes, correctly nested."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attributes):
        assert tag in PAGE + TABLE
        allowed = {"html": {"lang"}, "meta": {"charset"}, "p": {"class"}, "div": {"class"}, "img": {"alt", "src"}}
        assert {name for name, _ in attributes} <= allowed.get(tag, set())
        for name, value in attributes:
            assert name != "src" or re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value)
            assert name not in ("class", "lang", "charset") or value in ("warning", "scroll", "en", "utf-8")
            if name == "alt":
                self.text.append(value)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data):
        raise AssertionError(f"a declaration: {data}")


def rows_of(methods, structures, cases=("c0", "c1")):
    values = dict.fromkeys(METRICS, 0.5)
    return [
        Row(method, case, structure, {**values, "dice": 0.1 + 0.01 * number})
        for number, method in enumerate(methods)
        for case in cases
        for structure in structures
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_adds_no_element_to_the_page(tmp_path, name):
    methods = ["NoKD", f"m{name}"]
    report = Report(
        title=f"t{name}",
        facts={f"f{name}": f"g{name}"},
        warnings=[f"w{name}"],
        rows=[
            replace(row, seed=seed) for row in rows_of(methods, [f"s{name}"], [f"c{name}", "other"]) for seed in (0, 1)
        ],
        baseline=methods[1],
        teacher="NoKD",
        costs={method: replace(measured(10**6, 1.0), device=f"d{name}") for method in methods},
        curves={methods[1]: {f"l{name}": [1.0, 0.5]}},
        pictures={f"p{name}": Figure(figsize=(1, 1))},
    )
    page, markdown = write_report(report, tmp_path)
    inert = Inert()
    inert.feed(page.read_text(encoding="utf-8"))
    inert.close()
    assert inert.open == []
    shown = name.replace("\udcff", "\ufffd").replace("\x1b", " ").replace("\x00", " ")
    shown = re.sub(r"[\r\n]+", " ", shown)
    for letter in "tfgwmsp":
        assert any(f"{letter}{shown}" in text for text in inert.text), letter
    _check_markdown(markdown.read_text(encoding="utf-8"))


def _check_markdown(text):
    assert not re.search(r"<[a-zA-Z/!?]", text)  # the start of an HTML tag
    assert not re.search(r"(?<!\\)\](?=[(\[])", text)  # the start of a link
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    lines = text.splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == ["## Accuracy", "## Do these networks differ?", "## Seeds", "## Cost", "## Further metrics"]
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|[-|]+\|", line):
            columns = line.count("|") - 1
            body = [lines[number - 1]]
            while number + 1 < len(lines) and lines[number + 1].startswith("|"):
                number += 1
                body.append(lines[number])
            assert len(body) >= 2 and {_cells(row) for row in body} == {columns}


def _cells(row):
    """Count the cells as a Markdown parser does, where a backslash escapes the next character."""
    return len(re.sub(r"\\[^\w\s]", "", row).strip("|").split("|"))


def test_names_in_summaries_are_escaped():
    for name in NAMES:
        text = summary_table(rows_of(["base", name], [f"s{name}"]), "base")
        assert not re.search(r"<[a-zA-Z/!?]", text)
        tables = [line for line in text.splitlines() if line.startswith("|")]
        rules = [line for line in tables if re.fullmatch(r"\|[-|]+\|", line)]
        assert len(rules) == 3 and len(tables) == 2 * 4 + 3


def test_ordinary_names_are_unchanged():
    for name in ("nnUNetTrainer_r4", "mean Dice (%) [95 %]", "T1 & T2", "a > b", "D'Angelo", "über 50 %", "x^2 + y"):
        assert in_markdown(name) == name and in_figure(name) == name
    assert in_markdown("a|b") == "a\\|b" and in_html("a & b") == "a &amp; b"


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_a_name_unchanged(tmp_path, name):
    """Matplotlib would read dollars as formulas, and fail on an incomplete one."""
    methods = [f"{name}", "other"]
    labels, image = np.zeros((20, 20), int), np.random.default_rng(0).random((20, 20))
    labels[5:9, 5:9] = 1
    scores = Scores(rows_of(methods, [f"s{name}"]))
    figures = [
        draw_accuracy_against_cost(scores, {method: measured(10**6, 1.0) for method in methods}),
        draw_curves({method: {name: [1.0, 2.0]} for method in methods}),
        draw_comparison({name: (image, {"reference": labels, f"m{name}": labels})}, {1: name}, 1.0),
        draw_disagreement({name: Slice(image, labels, {f"m{name}": labels}, 1.0)}, {name: (1,)}),
    ]
    for number, figure in enumerate(figures):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a font lacks a letter, a long name does not fit
            figure.savefig(tmp_path / f"{number}.png")
    for legend in (figures[0].axes[1].get_legend(), figures[1].axes[0].get_legend(), figures[2].legends[0]):
        for text in legend.get_texts():
            assert not text.get_parse_math() or "$" not in text.get_text().replace("\\$", "")
    assert len(figures[0].axes[1].get_legend().get_texts()) == 2
    if name:
        assert len(figures[1].axes[0].get_legend().get_texts()) == 2


def test_a_formula_in_a_name_would_stop_matplotlib(tmp_path):
    """This shows that the previous test can fail."""
    figure = Figure()
    figure.text(0, 0, "a $\\frac{$ b")
    with pytest.raises(ValueError, match="frac"):
        figure.savefig(tmp_path / "figure.png")


def test_tables_for_programs_keep_every_name(tmp_path):
    names = [name for name in NAMES if "\udcff" not in name and "\x00" not in name]
    names += ["=1+1", "+1", "-1", "@SUM(A1)", 'a "quoted" name', "a, b", "\ttab", "lone\rreturn"]
    rows = [Row(name, f"c{name}", f"s{name}", dict.fromkeys(METRICS, 0.5)) for name in names]
    table, records = write_rows(rows, tmp_path)
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], line["case"], line["structure"]) for line in lines] == [
        (row.method, row.case, row.structure) for row in rows
    ]
    assert all(set(line) == {"method", "case", "structure", *METRICS} for line in lines)
    assert [record["method"] for record in json.loads(records.read_text())] == names


def test_a_case_whose_name_cannot_be_written(tmp_path):
    try:
        (tmp_path / "c\udcff.nii.gz").touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    with pytest.raises(ValueError, match="has a name that is not in UTF-8"):
        find_cases(tmp_path, {"one": tmp_path}, ".nii.gz")
