"""A report in a browser: nothing overflows on a narrow or a wide screen, no script fails, and tables can be sorted."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from nnunet_kd.evaluation.pictures import Case, draw_cases
from nnunet_kd.study.report import Report, write_report
from tests.evaluation.figures import counted, measured

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"),
]
LONG = "sub-0001_ses-2024-11-03T10-15-00_acq-hires_run-01_space-native_desc-preprocessed-and-" + "denoised" * 20
METHOD = "nnUNetTrainerDCDWithPublishedTransformAndFrozenProjection"
# It tells the page around it what it has found. Chromium has no window as narrow as a frame can be.
PROBE = """<script>
const failures = [];
addEventListener("error", event => failures.push(String(event.message || event.target.src)), true);
addEventListener("load", () => {
  const overflow = () => document.documentElement.scrollWidth - innerWidth;
  const folded = overflow();
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const table = document.querySelector("table");
  const methods = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  const orders = [methods()];
  for (let click = 0; click < 2; click++) { table.tHead.rows[0].cells[1].click(); orders.push(methods()); }
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const cut = [...document.querySelectorAll("figcaption, h1, h3, li, summary")]
    .filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth).length;
  const page = getComputedStyle(document.body).backgroundColor;
  const unfolded = overflow();
  parent.postMessage(JSON.stringify({width: innerWidth, folded, unfolded, failures, orders, broken, cut, page}), "*");
});
</script>"""
FRAME = """<pre id="found"></pre><iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>
addEventListener("message", event => {{ document.getElementById("found").textContent = event.data; }});
</script>"""


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Report of three methods with long names, with the probe in it."""
    volumes = {"teacher": (50, 50), "NoKD": (30, 50), METHOD: (40, 50), "KD": (45, 50)}
    rows = counted(**{method: [pair, pair, (20, 25)] for method, pair in volumes.items()})
    rows = [replace(row, values={**row.values, "dice": row.confusion.metrics()["dice"]}) for row in rows]
    reference = np.zeros((6, 20, 20), int)
    reference[2:4, 5:9, 5:9] = 1
    found = {method: np.roll(reference, 1, axis) for axis, method in enumerate(("NoKD", METHOD, "KD"))}
    case = Case(np.random.default_rng(0).random(reference.shape), reference, found, [2.0, 1.0, 1.0], {})
    cost = dict.fromkeys(("NoKD", METHOD, "KD"), measured(10**6, 0.4))
    report = Report(
        title=f"Dataset501_{'Heads' * 12}, 3d_fullres: NoKD, {METHOD}, KD",
        facts={"Data": LONG},
        warnings=[f"{METHOD} (fold 0, plans {LONG}) failed."],
        rows=rows,
        baseline="NoKD",
        teacher="teacher",
        costs={"teacher": measured(16 * 10**6, 4.0), **cost},
        curves={METHOD: {"train_losses": [1.0, 0.5], "segmentation": [1.0, 0.4]}},
        pictures=draw_cases("Cases", "", {LONG: case, "short": case}, {"a": (1,)}, "reference"),
    )
    folder = tmp_path_factory.mktemp("report")
    page, _ = write_report(report, folder)
    page.write_text(page.read_text().replace("<head>", f"<head>{PROBE}", 1))
    return page


def opened(page, width, *options):
    around = page.with_name(f"frame_{width}.html")
    around.write_text(FRAME.format(width=width))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,900"]
    words += ["--virtual-time-budget=5000", f"--user-data-dir={page.parent / 'browser'}"]
    command = [CHROMIUM, *words, *options, "--dump-dom", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))


@pytest.mark.parametrize("width", [400, 1300])
def test_nothing_overflows_or_fails(probed, width):
    found = opened(probed, width)
    assert found["width"] == width and found["page"] == "rgb(255, 255, 255)"
    assert found["folded"] <= 0 and found["unfolded"] <= 0
    assert (found["failures"], found["broken"], found["cut"]) == ([], 0, 0)
    before, down, up = found["orders"]
    assert before == ["teacher", "NoKD", METHOD, "KD"]
    assert down == ["teacher", "KD", METHOD, "NoKD"] and up == down[::-1]


def test_a_dark_screen(probed):
    assert opened(probed, 800, "--blink-settings=preferredColorScheme=0")["page"] == "rgb(21, 24, 28)"
