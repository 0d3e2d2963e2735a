import json

import numpy as np
import SimpleITK

from nnunet_kd.datasets.synthetic import LABELS, make_case, make_dataset


def test_cases_have_small_lesions_of_both_classes():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(12):
        images, labels = make_case((20, 36, 32), generator)
        assert images.shape == (3, 20, 36, 32) and images.dtype == np.float32 and np.isfinite(images).all()
        shares.append([(labels == value).mean() for value in LABELS.values()])
    background, oedema, enhancing = np.mean(shares, axis=0)
    assert background > 0.97 and 0.001 < oedema < 0.02 and 0.0003 < enhancing < 0.01


def test_lesions_can_be_seen():
    images, labels = make_case((20, 36, 32), np.random.default_rng(3))
    flair, brain = images[2], (images[0] > 500) & (labels == 0)
    assert flair[labels == 1].mean() > flair[brain].mean() + 2 * 50


def test_files_are_nnunets_and_repeat(tmp_path):
    for name in ("one", "two"):
        make_dataset(tmp_path / name, training=2, test=1, shape=(8, 12, 10), seed=4)
    image = SimpleITK.ReadImage(str(tmp_path / "one" / "imagesTr" / "head_000_0002.nii.gz"))
    assert np.allclose(image.GetSpacing(), (1.3, 1.2, 2.5))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.nii.gz"))
    assert len(files) == 3 * (3 + 1)
    for path in files:
        one, two = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / n / path))) for n in ("one", "two"))
        assert (one == two).all()
    assert json.loads((tmp_path / "one" / "dataset.json").read_text())["numTraining"] == 2
