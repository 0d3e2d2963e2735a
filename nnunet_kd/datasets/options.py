"""Options that single data sets take: declared once, as a field of the data set's class."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option of a data set, as a command line needs it.

    Attributes:
        name: The name of the field; the command takes ``--NAME``.
        help: One line that says what the option does.
        default: The value of a data set that is made without it.
        choices: The values it takes; empty where it is a switch.
    """

    name: str
    help: str
    default: Any
    choices: tuple[Any, ...]


def option(default: T, help: str) -> T:
    """Declare an option in the body of a data set's class.

    A ``bool`` becomes a switch. Anything else is annotated with its values::

        regions: bool = option(False, "regions instead of classes")
        organs: Literal[8, 13] = option(13, "how many organs (default: 13)")

    Data sets that share an option inherit it from one base class.

    Args:
        default: The value where nobody gives the option; ``False`` for a switch.
        help: One line for ``nnunet_kd dataset --help``, which puts the names of the data sets before it.
    """
    declared: T = field(default=default, metadata={"help": help})
    return declared


def options_of(dataset: type[Any]) -> tuple[Option, ...]:
    """Return the options that a class declares or inherits, in the order of its fields.

    Raises:
        TypeError: If an option is neither a switch that is off by default nor a ``Literal``.
    """
    hints = get_type_hints(dataset)
    found = []
    for declared in fields(dataset):
        hint, choices = hints[declared.name], get_args(hints[declared.name])
        if get_origin(hint) is not Literal and not (hint is bool and declared.default is False):
            raise TypeError(f"{dataset.__name__}.{declared.name} must be a bool that is False by default, or a Literal")
        found.append(Option(declared.name, declared.metadata["help"], declared.default, choices))
    return tuple(found)
