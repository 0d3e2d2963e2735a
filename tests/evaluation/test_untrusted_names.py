"""Names of cases, methods and structures are shown as text, whatever they contain."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_kd.evaluation.confusion import Confusion
from nnunet_kd.evaluation.folders import find_cases
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.page import _SCRIPT, Gallery, Picture
from nnunet_kd.evaluation.rows import Row, write_rows
from nnunet_kd.evaluation.scores import Scores, compare
from nnunet_kd.evaluation.summary import summary_table
from nnunet_kd.evaluation.text import in_figure, in_html, in_markdown
from nnunet_kd.study.figures import (
    draw_accuracy_against_seconds,
    draw_curves,
    draw_differences,
    draw_pairs,
    draw_volumes,
)
from nnunet_kd.study.report import Report, write_report
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
PAGE = ("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "div", "img", "script")
PARTS = ("details", "summary", "figure", "figcaption", "span", "i", "svg", "defs", "g", "path", "use", "text", "tspan")
ATTRIBUTES = {
    "html": {"lang"},
    "meta": {"charset", "name", "content"},
    "p": {"class"},
    "ul": {"class"},
    "div": {"class"},
    "details": {"open"},
    "i": {"style"},
    "img": {"alt", "src"},
    "svg": {"role", "aria-label", "xmlns", "xmlns:xlink", "width", "height", "viewbox", "version"},
}
OF_CHARTS = {"id", "style", "d", "x", "y", "transform", "clip-path", "xlink:href", "width", "height"}
CLASSES = {"warning", "scroll", "verdict", "facts", "note", "charts", "gallery", "legend"}
TABLE = ("table", "thead", "tbody", "tr", "th", "td")


class Inert(HTMLParser):
    """Check that a page contains only our elements and attributes, correctly nested."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.scripts = [], [], []

    def handle_starttag(self, tag, attributes):
        assert tag in PAGE + PARTS + TABLE + ("clippath", "rect")
        allowed = OF_CHARTS if "svg" in self.open else ATTRIBUTES.get(tag, set())
        assert {name for name, _ in attributes} <= allowed, tag
        for name, value in attributes:
            assert name != "src" or re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", value)
            assert name != "class" or value in CLASSES
            assert name != "xlink:href" or re.fullmatch("#[0-9a-zA-Z]+", value)
            assert tag != "i" or re.fullmatch("background:#[0-9A-F]{6}", value)
            if name in ("alt", "aria-label"):
                self.text.append(value)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

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


@pytest.mark.parametrize("names", [NAMES[:8], NAMES[8:15], NAMES[15:]])
def test_a_name_adds_no_element_to_the_page(tmp_path, names):
    def each(letter):
        return [f"{letter}{name}" for name in names]

    def joined(letter):
        return "; ".join(each(letter))

    methods = ["NoKD", *each("m")]
    pixels = np.zeros((2, 2, 4), np.uint8)
    report = Report(
        title=joined("t"),
        facts=dict(zip(each("f"), each("g"), strict=True)),
        warnings=each("w"),
        rows=[
            replace(row, seed=seed) for row in rows_of(methods, each("s"), [joined("c"), "other"]) for seed in (0, 1)
        ],
        baseline=methods[1],
        teacher="NoKD",
        costs={method: replace(measured(10**6, 1.0), device=joined("d")) for method in methods},
        curves={methods[1]: {line: [1.0, 0.5] for line in each("l")}},
        pictures=Gallery(
            joined("p"),
            joined("n"),
            {joined("q"): [Picture(*both, pixels) for both in zip(each("r"), each("o"), strict=True)]},
            dict.fromkeys(each("k"), "#E69F00"),
        ),
    )
    page, markdown = write_report(report, tmp_path)
    inert = Inert()
    inert.feed(page.read_text(encoding="utf-8"))
    inert.close()
    assert inert.open == [] and inert.scripts == [_SCRIPT]
    for name in names:
        shown = name.replace("\udcff", "\ufffd").replace("\x1b", " ").replace("\x00", " ")
        shown = re.sub(r"[\r\n]+", " ", shown)
        for letter in "tfgwmspnqrok":
            assert any(f"{letter}{shown}" in text for text in inert.text), (letter, name)
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


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_charts_show_names_unchanged(tmp_path):
    """Matplotlib would read dollars as formulas, and fail on an incomplete one."""
    invented = rows_of(NAMES, ["s"])
    scores = Scores(invented)
    counts = [replace(row, confusion=Confusion(5, 1, 1, 100)) for row in invented]
    figures = [
        draw_accuracy_against_seconds(scores, {method: measured(10**6, 1.0) for method in NAMES}, NAMES[0], None),
        draw_curves({method: {name: [1.0, 2.0] for name in NAMES[13:17]} for method in NAMES}),
        draw_volumes(counts, NAMES, NAMES[0], None),
        draw_differences(compare(scores, NAMES[0]), NAMES[0], None),
        draw_pairs(Scores(rows_of(NAMES[13:16], ["s"])), NAMES[13]),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").stat().st_size > 1000
    for figure in figures[:3]:
        texts = figure.legends[0].get_texts()
        assert len(texts) == len(NAMES)
        for text in texts:
            assert not text.get_parse_math() or "$" not in text.get_text().replace("\\$", "")


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
