"""Names of data sets as nnU-Net takes them: ``Dataset``, a number of three digits or more, and whatever follows."""

from __future__ import annotations

import re

_NAME = re.compile(r"Dataset(\d{3,})[^/\\]*", re.ASCII)


def is_dataset_name(name: str) -> bool:
    """Whether a data set may be called so: ``Dataset501_BraTS``, ``Dataset501``, ``Dataset1234_X``."""
    return _NAME.fullmatch(name) is not None


def dataset_number(name: str) -> int:
    """The number in a name: nnU-Net's planning and preprocessing take nothing else.

    Raises:
        ValueError: Where no data set may be called so.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"a data set is named as Dataset501_Name, got {name!r}")
    return int(found[1])


def are_confused(name: str, other: str) -> bool:
    """Whether nnU-Net takes two data sets for one: it looks for names that begin with ``Dataset`` and the number."""
    pairs = ((name, other), (other, name))
    return any(is_dataset_name(one) and two.startswith(f"Dataset{dataset_number(one):03d}") for one, two in pairs)
