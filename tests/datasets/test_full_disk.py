"""On a full disk one sentence names the file, no data set is left, and with space it is made."""

import pytest

from nnunet_kd.cli import main
from tests.datasets import layouts
from tests.full_disk import PAGE, leave, names_one_file
from tests.survival import tree


@pytest.mark.parametrize("name", ["ISLES2022", "BraTS2021", "BUSI", "FetalHeadHC18"])
def test_a_conversion(tmp_path, small_disk, capsys, monkeypatch, name):
    """Volumes that are resampled, that are copied since they cannot be linked, pictures."""
    source, disk = tmp_path / "source", small_disk(2**22)
    source.mkdir()
    layouts.LAYOUTS[name](source)
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    words = ["dataset", name, str(source), "--skip-bad", "-np", "1", "--raw"]
    assert main([*words, str(tmp_path / "raw")]) == 0
    expected = tree(tmp_path / "raw")
    pages = sum(-(-len(content) // PAGE) + 1 for content in expected.values())
    raw = disk / "raw"
    refused = 0
    for share in (0, 0.02, 0.1, 0.3, 0.5, 0.6):
        leave(disk, int(share * pages) * PAGE)
        capsys.readouterr()
        if main([*words, str(raw)]) == 0:
            break
        refused += 1
        printed = capsys.readouterr().err
        assert names_one_file(printed), printed
        assert not raw.exists() or not list(raw.iterdir())
    assert refused >= 3
    if not raw.exists() or not list(raw.iterdir()):
        leave(disk, 2**21)
        assert main([*words, str(raw)]) == 0
    assert tree(raw) == expected


def test_a_conversion_in_two_processes(tmp_path, small_disk, capsys):
    source, disk = tmp_path / "source", small_disk(2**22)
    source.mkdir()
    layouts.isles2022(source)
    leave(disk, 2**17)
    assert main(["dataset", "ISLES2022", str(source), "--skip-bad", "--raw", str(disk / "raw")]) == 1
    assert names_one_file(capsys.readouterr().err)
    assert not list((disk / "raw").iterdir())
