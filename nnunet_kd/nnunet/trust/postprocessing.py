"""Recognise nnU-Net's ``postprocessing.pkl`` without running anything that the file names.

nnU-Net pickles two lists: its own function, once per step, and the keywords of each step, in which labels are NumPy
integers unless they are regions. Unpickling such a file calls whatever it names. This module replaces every allowed
name by a harmless stand-in that accepts exactly the arguments that NumPy and nnU-Net write, and refuses all others.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

_LARGEST = 2**20  # bytes; a file with a thousand labels takes less than a tenth of this
# nnU-Net's files make calls with REDUCE alone; these opcodes can call other things.
_OTHER_CALLS = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}


def is_postprocessing(path: Path) -> bool:
    """Return whether a pickle contains nnU-Net's postprocessing and nothing else."""
    try:
        if path.stat().st_size > _LARGEST:
            return False
        content = path.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            # A memo index reserves memory for as many entries, so it must not exceed the size of the file.
            if opcode.name in _OTHER_CALLS or (opcode.name.endswith("PUT") and int(argument or 0) > len(content)):
                return False
        loaded = _Harmless(io.BytesIO(content)).load()
    except Exception:  # a damaged file can raise any exception
        return False
    return _are_steps(loaded)


class _Named:
    """A stand-in for a name that a file can contain; only subclasses that define it can be called."""

    def __call__(self, *_: Any) -> Any:
        raise ValueError("it is called")

    def __setstate__(self, _: Any) -> NoReturn:
        raise ValueError("it is changed")


class _Dtype(_Named):
    """A stand-in for the ``numpy.dtype`` of an integer, which accepts the arguments that NumPy pickles."""

    def __init__(self, code: str = "") -> None:
        self.size = int(code[1:] or 0)

    def __call__(self, *arguments: Any) -> _Dtype:
        code, *rest = arguments
        if code not in {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} or rest != [False, True]:
            raise ValueError(f"no integer: {arguments}")
        return _Dtype(code)

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        if not self.size or state not in [(3, order, None, None, None, -1, -1, 0) for order in "<>|"]:
            raise ValueError(f"no integer: {state}")


class _Scalar(_Named):
    """A stand-in for ``numpy._core.multiarray.scalar``, which builds a number from its type and its bytes."""

    def __call__(self, *arguments: Any) -> int:
        dtype, content = arguments
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or len(content) != dtype.size:
            raise ValueError("no integer")
        return 0  # the value of a label does not matter here


_FUNCTION = _Named()
_NAMED = {
    (
        "nnunetv2.postprocessing.remove_connected_components",
        "remove_all_but_largest_component_from_segmentation",
    ): _FUNCTION,
    ("numpy", "dtype"): _Dtype(),
    ("numpy._core.multiarray", "scalar"): _Scalar(),
    ("numpy.core.multiarray", "scalar"): _Scalar(),  # NumPy 1
}


class _Harmless(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _NAMED[module, name]


def _are_steps(loaded: Any) -> bool:
    """Return whether an object consists of a list of functions and a list of their keywords, as nnU-Net writes them."""
    if not isinstance(loaded, tuple) or [type(part) for part in loaded] != [list, list]:
        return False
    functions, keywords = loaded
    if len(functions) != len(keywords) or any(function is not _FUNCTION for function in functions):
        return False
    if any(type(given) is not dict or given.keys() != {"labels_or_regions"} for given in keywords):
        return False
    regions = _parts([given["labels_or_regions"] for given in keywords], list)
    return all(type(label) is int for label in _parts(regions, tuple))


def _parts(given: Iterable[Any], kind: type[list[Any] | tuple[Any, ...]]) -> list[Any]:
    """Replace the objects of a kind by their parts; an object that occurs several times is visited once."""
    distinct = {id(one): one for one in given}.values()
    return [part for one in distinct for part in (one if type(one) is kind else (one,))]
