"""The structures of a DICOM segmentation: names from ``dataset.json``, colours and codes from an optional JSON file."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..files.limited_json import read_limited
from ..plans import Labels

_GOLDEN = 0.618034  # a step in hue after which neighbouring structures have colours that differ well


@dataclass(frozen=True)
class Code:
    """A coded concept of DICOM.

    Attributes:
        value: The code.
        scheme: The coding scheme, such as ``SCT`` for SNOMED CT.
        meaning: What it means.
    """

    value: str
    scheme: str
    meaning: str


TISSUE = Code("85756007", "SCT", "Tissue")


@dataclass(frozen=True)
class Structure:
    """One structure, which becomes one segment.

    Attributes:
        name: The name for readers of the segmentation.
        labels: The labels that belong to it; several for a region.
        colour: The red, green and blue of its display, from 0 to 255.
        category: The kind of thing that it is.
        kind: What it is.
    """

    name: str
    labels: tuple[int, ...]
    colour: tuple[int, int, int]
    category: Code = TISSUE
    kind: Code = TISSUE


def read_structures(labels: Labels, path: Path | None = None) -> tuple[Structure, ...]:
    """Return the structures of a model, in the order of their labels; regions in the order of ``dataset.json``.

    Args:
        labels: The labels or regions of the model.
        path: A JSON file in the format of dcmqi and 3D Slicer, whose ``segmentAttributes`` list for each ``labelID``
            any of ``SegmentLabel``, ``recommendedDisplayRGBValue``, ``SegmentedPropertyCategoryCodeSequence`` and
            ``SegmentedPropertyTypeCodeSequence``. For regions, ``labelID`` counts them from 1.

    Raises:
        ValueError: If the file is not such a file or names a structure that the model does not have.
    """
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in labels.names.items()}
    named = [(name, value) for name, value in values.items() if set(value) != {0}]
    if labels.region_order is None:
        named.sort(key=lambda one: one[1])
    structures = [Structure(name, value, _colour(place)) for place, (name, value) in enumerate(named)]
    if path is not None:
        try:
            for attributes in _attributes(read_limited(path)):
                number = attributes["labelID"]
                if number not in range(1, len(structures) + 1):
                    raise ValueError(f"labelID must be from 1 to {len(structures)}, got {str(number)[:60]}")
                structures[number - 1] = _described(structures[number - 1], attributes)
        except KeyError as error:
            raise ValueError(f"{path} does not describe structures: {error.args[0]!r} is missing") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not describe structures: {error}") from error
    return tuple(structures)


def _attributes(content: Any) -> list[Mapping[str, Any]]:
    """Return the entries of ``segmentAttributes``, which is a list of lists."""
    lists = content["segmentAttributes"]
    return [one for part in lists for one in (part if isinstance(part, list) else [part])]


def _described(structure: Structure, attributes: Mapping[str, Any]) -> Structure:
    changes: dict[str, Any] = {}
    if "SegmentLabel" in attributes:
        changes["name"] = str(attributes["SegmentLabel"])
    if "recommendedDisplayRGBValue" in attributes:
        colour = attributes["recommendedDisplayRGBValue"]
        if len(colour) != 3 or not all(isinstance(one, int) and 0 <= one <= 255 for one in colour):
            raise ValueError(f"recommendedDisplayRGBValue must be three numbers from 0 to 255, got {str(colour)[:60]}")
        changes["colour"] = tuple(colour)
    for name, key in (("category", "Category"), ("kind", "Type")):
        code = attributes.get(f"SegmentedProperty{key}CodeSequence")
        if code is not None:
            changes[name] = Code(*(str(code[part]) for part in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")))
    return replace(structure, **changes)


def _colour(place: int) -> tuple[int, int, int]:
    red, green, blue = (round(255 * one) for one in colorsys.hsv_to_rgb(place * _GOLDEN % 1, 0.75, 0.95))
    return red, green, blue
