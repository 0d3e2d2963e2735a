"""FCD 2023 leaves out controls, and keeps the test set of its table."""

import shutil

import pytest

from tests.datasets import layouts
from tests.datasets.converting import convert, read


def test_fcd_controls_and_missing_modalities(converted, tmp_path):
    root, made = converted
    assert made["FCD2023"].notes == [
        "1 subjects without a region of interest (controls) were left out",
        "participants.tsv names no test set: all cases are for training",
    ]
    with_t2 = convert("FCD2023", root / "FCD2023", tmp_path, t2=True)
    assert read(with_t2.folder / "imagesTr" / "sub-00002_0002.nii.gz")[0].max() == 0
    assert read(with_t2.folder / "imagesTr" / "sub-00003_0002.nii.gz")[0].max() > 100
    source = tmp_path / "source"
    shutil.copytree(root / "FCD2023", source)
    (source / "sub-00001" / "anat" / "sub-00001_acq-x_T1w.nii.gz").unlink()
    with pytest.raises(ValueError, match="sub-00001: .*sub-00001 has no T1w. --skip-bad leaves such cases out"):
        convert("FCD2023", source, tmp_path, number=600)


@pytest.mark.parametrize(("encoding", "test"), [("utf-8", "test"), ("utf-8-sig", "Test ")])
def test_fcd_keeps_the_test_set_of_its_table(tmp_path, encoding, test):
    layouts.fcd2023(tmp_path / "source")
    rows = ["participant_id\tgroup\tsplit", "sub-00001\tfcd\ttrain", f"sub-00002\tfcd\t{test}", "sub-00004\thc\ttest"]
    (tmp_path / "source" / "participants.tsv").write_text("\n".join(rows), encoding=encoding)
    made = convert("FCD2023", tmp_path / "source", tmp_path)
    assert (made.training, made.test) == (2, 1) and len(made.notes) == 1
    assert [path.name for path in (made.folder / "labelsTs").iterdir()] == ["sub-00002.nii.gz"]
