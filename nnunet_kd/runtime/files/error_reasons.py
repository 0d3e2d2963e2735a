"""One-line versions of the errors that libraries raise about a file or a network."""

from __future__ import annotations

import re
from pathlib import Path


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the type of the error if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException, path: Path | None = None) -> str:
    """Return one line that says why a library cannot read a file.

    Most libraries give the reason in the first line of the message. SimpleITK and OpenVINO give it in the last line,
    below the lines that say where in their code the error was raised.

    Args:
        error: The error that was raised.
        path: The file. A message that begins with ``cannot read PATH:`` is returned without this beginning.
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
