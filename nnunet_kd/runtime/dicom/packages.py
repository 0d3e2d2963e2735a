"""The packages of the extra ``[dicom]``, imported when a DICOM file is read or written."""

from __future__ import annotations

import importlib
from typing import Any

from ..engines import DISTRIBUTION


def package(name: str) -> Any:
    """Import ``pydicom`` or ``highdicom``.

    Raises:
        ImportError: If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed, which DICOM needs: pip install '{DISTRIBUTION}[dicom]'") from error
