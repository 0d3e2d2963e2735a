"""Data set names that nnU-Net accepts: ``Dataset``, a number of at least three digits, and any further text."""

from __future__ import annotations

import re

_NAME = re.compile(r"Dataset(\d{3,})[^/\\]*", re.ASCII)


def is_dataset_name(name: str) -> bool:
    """Return whether nnU-Net accepts a data set name, such as ``Dataset501_BraTS`` or ``Dataset1234``."""
    return _NAME.fullmatch(name) is not None


def dataset_number(name: str) -> int:
    """Return the number in a data set name, which is all that nnU-Net's planning and preprocessing accept.

    Raises:
        ValueError: If nnU-Net does not accept the name.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"the name of a data set must look like Dataset501_Name, got {name!r}")
    return int(found[1])


def are_confused(name: str, other: str) -> bool:
    """Return whether nnU-Net confuses two data sets, which it finds by ``Dataset`` and the number alone."""
    pairs = ((name, other), (other, name))
    return any(is_dataset_name(one) and two.startswith(f"Dataset{dataset_number(one):03d}") for one, two in pairs)
