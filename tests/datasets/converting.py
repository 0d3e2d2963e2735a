"""Convert a data set in this process, and look at what it has made."""

import SimpleITK as sitk

from nnunet_kd.datasets.conversion import convert_dataset
from nnunet_kd.datasets.table import DATASETS


def convert(name, source, raw, skip_bad=False, number=None, preprocessed=None, **options):
    """Convert the data set of this name with these options."""
    dataset = DATASETS[name](**options)
    return convert_dataset(dataset, source, raw, number, skip_bad=skip_bad, workers=1, preprocessed=preprocessed)


def read(path):
    """Return the array ``(z, y, x)`` and the image."""
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image


def same_files(folder, other):
    """Check that two folders hold the same files, byte by byte."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*.*"))]
    assert files == [path.relative_to(other) for path in sorted(other.rglob("*.*"))]
    for path in files:
        assert (folder / path).read_bytes() == (other / path).read_bytes()
