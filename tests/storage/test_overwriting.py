"""Files are compared by identity, not by name."""

import os
from pathlib import Path

import pytest

from nnunet_kd.storage.overwriting import check_kept, lies_in


@pytest.fixture
def scan(tmp_path, monkeypatch):
    """Create ``scans/scan.nii.gz`` with one alias of each kind, and change to the folder that contains ``scans``."""
    monkeypatch.chdir(tmp_path)
    path = Path("scans/scan.nii.gz")
    path.parent.mkdir()
    path.write_bytes(b"voxels")
    Path("out").mkdir()
    Path("out/linked.nii.gz").symlink_to("../scans/scan.nii.gz")
    os.link(path, "out/hard.nii.gz")
    os.link(path, "scans/SCAN.nii.gz")  # as on a case-insensitive disk
    Path("folder").symlink_to("scans")
    return path


NAMES = (
    "scans/scan.nii.gz",
    "./scans/../scans/scan.nii.gz",
    "out/linked.nii.gz",
    "out/hard.nii.gz",
    "scans/SCAN.nii.gz",
    "folder/scan.nii.gz",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("given", ["scans/scan.nii.gz", "scans", "folder"])
def test_an_input_under_any_of_its_names(scan, name, absolute, given):
    output = Path.cwd() / name if absolute else Path(name)
    with pytest.raises(ValueError, match=r"^cannot write .*: it is .*one of the inputs\. Give another$") as raised:
        check_kept([Path("nothing"), Path(given)], [Path("out/new.nii.gz"), output], "Give another")
    assert str(output) in str(raised.value)


def test_an_existing_file_that_is_not_an_input_is_accepted(scan):
    Path("out/other.nii.gz").write_bytes(b"voxels")
    Path("out/dangling.nii.gz").symlink_to("nowhere")
    names = ("out/other.nii.gz", "out/dangling.nii.gz", "out/new.nii.gz", "nowhere/new.nii.gz", "scans/new.nii.gz")
    check_kept([scan, Path("scans")], map(Path, names), "Give another")


def test_a_folder_that_is_an_input(scan):
    with pytest.raises(ValueError, match=r"^cannot write folder: it is the same as scans, one of the inputs\. Stop$"):
        check_kept([Path("scans")], [Path("folder")], "Stop")


@pytest.mark.parametrize("inside", ["scans", "scans/new/deep", "folder/new", "out/../scans/new", "folder"])
def test_paths_inside_a_folder(scan, inside):
    for path in (Path(inside), Path.cwd() / inside):
        assert lies_in(path, Path("scans")) and lies_in(path, Path("folder").absolute())
    assert not lies_in(Path("out/new"), Path("scans")) and not lies_in(Path("scans"), Path("nowhere"))
    assert not lies_in(Path("scans_2"), Path("scans")) and not lies_in(Path("."), Path("scans"))
