"""nnU-Net's ``postprocessing.pkl``, recognised without running anything that it names.

nnU-Net pickles two lists: its own function, once a step, and the keywords of each step, whose labels are NumPy integers
where they are no regions. Loading such a file calls what it names. Here everything it may name is replaced by something
harmless that takes exactly the arguments NumPy and nnU-Net write; whatever else a file holds, it is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

_LARGEST = 2**20  # bytes; a thousand labels take less than a tenth
# What nnU-Net writes calls by REDUCE alone; these find other things to call.
_OTHER_CALLS = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}


def is_postprocessing(path: Path) -> bool:
    """Whether a pickle holds nnU-Net's postprocessing, and nothing else."""
    try:
        if path.stat().st_size > _LARGEST:
            return False
        content = path.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            # A number in the memo that is larger than the file would reserve memory for as many.
            if opcode.name in _OTHER_CALLS or (opcode.name.endswith("PUT") and int(argument or 0) > len(content)):
                return False
        loaded = _Harmless(io.BytesIO(content)).load()
    except Exception:  # a damaged file ends in whichever it likes
        return False
    return _are_steps(loaded)


class _Named:
    """Stands for what a file may name; it can be called only where a subclass says how."""

    def __call__(self, *_: Any) -> Any:
        raise ValueError("it is called")

    def __setstate__(self, _: Any) -> NoReturn:
        raise ValueError("it is changed")


class _Dtype(_Named):
    """``numpy.dtype`` of an integer, built as NumPy pickles it."""

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
    """``numpy._core.multiarray.scalar``: a number of a type and its bytes."""

    def __call__(self, *arguments: Any) -> int:
        dtype, content = arguments
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or len(content) != dtype.size:
            raise ValueError("no integer")
        return 0  # whichever: no label runs anything


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
    """Whether it is a list of functions, and one of their keywords, as nnU-Net applies them."""
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
    """The parts of those that are of a kind, and the others; once where it is the same object many times."""
    distinct = {id(one): one for one in given}.values()
    return [part for one in distinct for part in (one if type(one) is kind else (one,))]
