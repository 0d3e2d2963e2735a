"""Showing errors of this package as a single sentence below the traceback of nnU-Net's commands.

nnU-Net makes and runs a trainer inside its own command, which hides the error message under forty lines of calls.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

REFUSALS = (ValueError, OSError, NotImplementedError, RuntimeError, ImportError)
COMMAND = "run_training_entry"  # nnU-Net's function behind nnUNetv2_train
_SAID = "_nnunet_kd_says_it_last"

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def said_last(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Print this package's errors in a method as one sentence if they end a command of nnU-Net.

    The exception itself is raised unchanged for programs that catch it.
    """

    @functools.wraps(method)
    def calling(*arguments: _Given.args, **options: _Given.kwargs) -> _Result:
        try:
            return method(*arguments, **options)
        except REFUSALS as error:
            if _is_ours(error) and not hasattr(error, _SAID):
                setattr(error, _SAID, True)
                _say_last(error)
            raise

    return calling


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised the error; errors of libraries need their traceback."""
    end = error.__traceback__
    while end is not None and end.tb_next is not None:
        end = end.tb_next
    return end is not None and end.tb_frame.f_globals.get("__name__", "").startswith(__package__.split(".")[0])


def _say_last(error: BaseException) -> None:
    if multiprocessing.parent_process() is not None:  # the parent shows this process's traceback as its error
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(_sentence(error))
    elif _in_command():
        sys.excepthook = functools.partial(_show, sys.excepthook)


def _in_command() -> bool:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != COMMAND:
        frame = frame.f_back
    return frame.f_code.co_name == COMMAND


def _show(
    before: Callable[..., Any], kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Call the previous ``sys.excepthook``, then print the sentence; lasts for one exception."""
    sys.excepthook = before
    before(kind, error, traceback)
    if hasattr(error, _SAID):
        sys.stdout.flush()  # nnU-Net's output must come first, in a pipe too
        print(_sentence(error), file=sys.stderr)


def _sentence(error: BaseException) -> str:
    return f"\nnnunet_kd: {error}"
