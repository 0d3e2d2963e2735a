"""JSON that may come from anybody: read within limits of size, depth and digits, or refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 64 * 2**20  # bytes; nnU-Net's largest, the summary of thousands of cases and structures, has a few MiB
DEEPEST = 50  # levels; plans have eight
DIGITS = 19  # of a whole number: 64 bits


def read_limited(path: Path, what: str = "") -> Any:
    """The content of a JSON file that may come from anybody.

    Args:
        path: The file.
        what: Whose file it is, for messages: ``"the teacher's "``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a file that cannot be read, is larger or deeper than any of nnU-Net's or is not JSON in UTF-8,
            and for numbers that are infinite or have more than 64 bits. NaN is allowed: nnU-Net writes it.
    """
    name = f"{what}{path}"
    try:
        if path.exists() and not path.is_file():  # a pipe or a device has no end
            raise ValueError(f"cannot read {name}: it is no file")
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
        raise ValueError(f"cannot read {name}: it is no JSON ({error})") from error
    except ValueError as error:
        raise ValueError(f"cannot read {name}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"cannot read {name}: it is nested deeper than {DEEPEST} levels") from error
    if _deeper(content, DEEPEST):
        raise ValueError(f"cannot read {name}: it is nested deeper than {DEEPEST} levels")
    return content


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _constant(text: str) -> float:
    return math.nan if text == "NaN" else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"it holds the number {text[:20]}, which is not finite")


def _deeper(content: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than so many levels; works without recursion."""
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
