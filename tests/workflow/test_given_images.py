"""Images that change while a distillation goes on."""

import os
import shutil

import pytest

from nnunet_kd.workflow.given_images import check_images, note_images
from nnunet_kd.workflow.raw_dataset import find_cases

TEACHER = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}


@pytest.fixture
def given(tmp_path):
    """Folders of images and references, and a function that finds their cases, after they have been noted."""
    for name in ("images", "labels", "out"):
        (tmp_path / name).mkdir()
    for case in "abcd":
        (tmp_path / "images" / f"{case}_0000.nii.gz").write_text(case)
    (tmp_path / "labels" / "a.nii.gz").write_text("label")
    given = (tmp_path / "images", tmp_path / "labels")
    note_images(tmp_path / "out", find_cases(*given, TEACHER), ["d"])
    return tmp_path, lambda: check_images(tmp_path / "out", find_cases(*given, TEACHER))


def change(path, content):
    """Change a file without changing its size; the modification time is an old one, as after copying a backup."""
    path.write_text(content)
    os.utime(path, (0, 0))


def test_copies_and_mended_cases_are_no_change(given):
    root, check = given
    check()
    path = root / "images" / "a_0000.nii.gz"
    shutil.copy(path, root / "copy")
    os.utime(root / "copy", (0, 0))
    (root / "copy").replace(path)
    change(root / "images" / "d_0000.nii.gz", "mended")
    check()
    (root / "images" / "d_0000.nii.gz").unlink()
    check()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda root: change(root / "images" / "b_0000.nii.gz", "B"), "b_0000.nii.gz has changed: restore what was"),
        (lambda root: change(root / "labels" / "a.nii.gz", "LABEL"), "labels/a.nii.gz has changed: restore"),
        (lambda root: (root / "labels" / "b.nii.gz").touch(), "labels/b.nii.gz is new: restore what was there before"),
        (lambda root: (root / "images" / "b_0000.nii.gz").unlink(), "case b is no longer in .*images: put it back, or"),
        (lambda root: (root / "images" / "e_0000.nii.gz").touch(), "case e in .*images is new: take it away, or give"),
    ],
)
def test_changes_are_refused_with_what_to_do(given, act, message):
    root, check = given
    act(root)
    with pytest.raises(ValueError, match=f"{message}.*another folder than {root}/out, which was begun with other"):
        check()
