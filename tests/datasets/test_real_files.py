"""Published files are converted, as far as some lie beside the project."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_kd.datasets.table import DATASETS
from tests.datasets.converting import convert, read

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "raw_samples"


@pytest.mark.slow
def test_every_converter_runs_on_real_files_where_there_are_some(tmp_path):
    names = [name for name in DATASETS if (SAMPLES / name).is_dir()]
    if not names:
        pytest.skip("no real files beside the project")
    expected = {"BraTS2024GLI": 1, "ISLES2022": 1, "ISIC2018": 200, "FetalHeadHC18": 40, "BUSI": 36}
    for name in names:
        made = convert(name, SAMPLES / name, tmp_path)
        assert made.training == expected[name] and not made.skipped
        for path in list((made.folder / "labelsTr").iterdir())[:5]:
            label = np.asarray(Image.open(path)) if path.suffix == ".png" else read(path)[0]
            known = json.loads((made.folder / "dataset.json").read_text())["labels"].values()
            assert set(np.unique(label).tolist()) <= set(known)
