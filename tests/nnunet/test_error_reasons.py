"""The reason why a library cannot read a file is one line."""

import re
from pathlib import Path

import pytest

from nnunet_kd.nnunet.error_reasons import reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("cannot read a/b.nii: it is truncated"), "it is truncated"),
        (ValueError("too small\nat line 7"), "too small"),
        (RuntimeError(), "RuntimeError"),
        (PermissionError(13, "Permission denied", "a/b.nii"), "Permission denied"),
        (
            RuntimeError("Exception thrown in SimpleITK ImageFileReader_Execute: /a.cxx:9:\nsitk::ERROR: Unable to"),
            "Unable to",
        ),
        (RuntimeError("Exception thrown in SimpleITK X: /a.cxx:9:\nITK ERROR: NrrdImageIO(0x5a): No"), "No"),
        (
            RuntimeError("Exception from a.cpp:84:\nException from b.cpp:1:\nUnable to read the model\n\n"),
            "Unable to .*",
        ),
    ],
)
def test_the_reason_is_one_line(error, said):
    assert re.fullmatch(said, reason(error, Path("a/b.nii")))


def test_the_reason_for_a_sheared_image_says_what_to_do():
    error = RuntimeError("Exception thrown in SimpleITK X: /a.cxx:1:\nITK ERROR: ITK only supports orthonormal direct")
    assert "it is sheared" in reason(error) and "correct the sform of its header, or resample" in reason(error)
