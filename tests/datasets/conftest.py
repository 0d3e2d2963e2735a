"""Every data set of the papers, converted: made once."""

import pytest
import SimpleITK as sitk

from nnunet_kd.datasets.conversion import Options, convert_dataset
from nnunet_kd.datasets.formats import FORMATS
from tests.datasets import layouts


def read(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def convert(name, source, raw, skip_bad=False, number=None, **options):
    form = FORMATS[name]
    return convert_dataset(form, source, raw, number or form.id, Options(**options), skip_bad, workers=1)


def same_files(folder, other):
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.*"))]
    assert files == [path.relative_to(other) for path in sorted(other.rglob("*.*"))]
    for path in files:
        assert (folder / path).read_bytes() == (other / path).read_bytes()


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """All data sets in one ``nnUNet_raw``."""
    root = tmp_path_factory.mktemp("datasets")
    made = {}
    for name, layout in layouts.LAYOUTS.items():
        source = root / name
        source.mkdir()
        layout(source)
        made[name] = convert(name, source, root / "nnUNet_raw")
    return root, made
