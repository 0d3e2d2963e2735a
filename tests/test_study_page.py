"""The page of benchmarks/study.py; what it calls is tested where it is."""

import json

from matplotlib.image import imread

from benchmarks import study
from nnunet_kd.evaluation.folders import Row, write_rows
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.runs import rows_of_file, rows_of_methods
from nnunet_kd.settings import BLOCK, read_settings
from nnunet_kd.teachers.nnunet import find_trainer
from nnunet_kd.training.methods import active_terms


def write_part(folder, dice):
    """Every method's Dice of two cases."""
    folder.mkdir()
    rows = [
        Row(method, case, "tumour", {**dict.fromkeys(METRICS, float("nan")), "dice": value + shift})
        for method, value in dice.items()
        for case, shift in (("one", -0.1), ("two", 0.1))
    ]
    write_rows(rows, folder)
    (folder / "report.md").write_text("# Title\n\nfacts\n\n## Accuracy\n\ntable\n\n## Further metrics\n\nmore\n")


def test_page_and_picture_of_the_parts_that_are_done(tmp_path):
    assert "|" not in study.page(tmp_path)
    study.picture(tmp_path, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    write_part(tmp_path / "brats_r4", {"teacher": 0.7, "NoKD": 0.5, "DCD": 0.6})
    write_part(tmp_path / "hippocampus_r8", {"teacher": 0.8, "NoKD": 0.6, "CWD": 0.55})
    write_part(tmp_path / "ablation", {"teacher": 0.8, "NoKD": 0.6})
    text = study.page(tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    short = study.PARTS["brats_r4"].short, study.PARTS["hippocampus_r8"].short
    assert lines[0] == ["method", f"{short[0]}: Dice (%)", "gap closed (%)", f"{short[1]}: Dice (%)", "gap closed (%)"]
    assert lines[2:] == [
        ["teacher", "70.00 ± 10.00", "", "80.00 ± 10.00", ""],
        ["NoKD", "50.00 ± 10.00", "", "60.00 ± 10.00", ""],
        ["DCD", "60.00 ± 10.00", "50 [50, 50]", "-", ""],
        ["CWD", "-", "", "55.00 ± 10.00", "-25 [-25, -25]"],
    ]
    assert f"Not run yet: {study.PARTS['tuning'].title}; {study.PARTS['brats_r8'].title}; " in text
    assert text.count("\n### Accuracy\n") == 3 and "more" not in text
    assert text.index(study.PARTS["brats_r4"].title) < text.index(study.PARTS["ablation"].title)
    study.picture(tmp_path, tmp_path / "study.png")
    picture = imread(tmp_path / "study.png")
    assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05


def test_every_row_is_valid(tmp_path):
    for name, part in study.PARTS.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(part.rows))
        for row in [*rows_of_file(path), *rows_of_methods(part.methods)]:
            trainer = find_trainer(row.trainer)
            active_terms(trainer.terms, row.settings.get("method", {}), 20)
            read_settings({BLOCK: {"training": dict(row.settings.get("training", {}))}})
