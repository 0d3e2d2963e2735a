"""Read untrusted JSON within limits of size, depth and digits, and refuse anything else in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 64 * 2**20  # bytes; nnU-Net's largest JSON file, a summary of thousands of cases, takes a few MiB
DEEPEST = 50  # levels of nesting; plans have eight
DIGITS = 19  # digits of a whole number, as many as 64 bits can hold


def read_limited(path: Path, what: str = "") -> Any:
    """Return the content of an untrusted JSON file.

    Args:
        path: The file.
        what: The owner of the file, for messages: ``"the teacher's "``.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read, is larger or more deeply nested than any file of nnU-Net, is not JSON in
            UTF-8, or contains a number that is infinite or has more than 64 bits. NaN is allowed, because nnU-Net
            writes it.
    """
    name = f"{what}{path}"
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has no end
            raise ValueError(f"cannot read {name}: it is not a regular file")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"cannot read {name}: there is no such file") from error
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror}") from error
    if len(raw) > LARGEST:
        raise ValueError(f"cannot read {name}: it is larger than {LARGEST // 2**20} MiB")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {name}: it is not in UTF-8") from error
    try:
        content = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"cannot read {name}: it is not valid JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"cannot read {name}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"cannot read {name}: it is nested deeper than {DEEPEST} levels") from error
    if _deeper(content, DEEPEST):
        raise ValueError(f"cannot read {name}: it is nested deeper than {DEEPEST} levels")
    return content


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"it contains a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _constant(text: str) -> float:
    return math.nan if text == "NaN" else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"it contains the number {text[:20]}, which is not finite")


def _deeper(content: Any, levels: int) -> bool:
    """Return, without recursion, whether lists and objects are nested more deeply than a number of levels."""
    level = [content]
    for _ in range(levels + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
