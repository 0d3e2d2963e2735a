"""Errors that libraries raise over a file or a network, as one line."""

from __future__ import annotations

import re
from pathlib import Path


def first_line(error: BaseException) -> str:
    """Return the first line of a message, or the type of the error where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException, path: Path | None = None) -> str:
    """Say why a library cannot read a file, in one line.

    Most libraries say it in the first line; SimpleITK and OpenVINO in the last, below the places in their code.

    Args:
        error: What was raised.
        path: The file; the beginning of a message that says that it cannot be read is left out.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].startswith("Exception "):
        return lines[0].removeprefix(f"cannot read {path}: ")
    if "orthonormal" in lines[-1]:
        return (
            "the axes in its header are not orthonormal (it is sheared), which SimpleITK refuses: correct the sform of "
            "its header, or resample the image to axes at right angles"
        )
    return re.sub(r"^(sitk::|ITK )ERROR: (\w+\(0x[0-9a-f]+\): )?", "", lines[-1])
