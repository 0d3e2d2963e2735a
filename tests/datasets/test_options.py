"""Options are declared as fields of a data set's class."""

from dataclasses import dataclass, make_dataclass
from typing import Literal

import pytest

from nnunet_kd.datasets.options import Option, option, options_of


@dataclass(frozen=True)
class Hearts:
    wall: bool = option(False, "label the wall too")


@dataclass(frozen=True)
class Cine(Hearts):
    phase: Literal["systole", "diastole"] = option("systole", "phase of the heart")


def test_a_switch_and_a_choice():
    assert options_of(Hearts) == (Option("wall", "label the wall too", False, ()),)
    assert options_of(Cine)[1:] == (Option("phase", "phase of the heart", "systole", ("systole", "diastole")),)
    assert (Cine().wall, Cine(wall=True).wall, Cine().phase) == (False, True, "systole")


def test_a_shared_option_is_the_same_one():
    assert options_of(Cine)[0] == options_of(Hearts)[0]


@pytest.mark.parametrize(("kind", "default"), [(bool, True), (int, 3), (str, "systole")])
def test_other_kinds_are_refused(kind, default):
    wrong = make_dataclass("Wrong", [("phase", kind, option(default, "phase of the heart"))])
    with pytest.raises(TypeError, match=r"^Wrong\.phase must be a bool that is False by default, or a Literal$"):
        options_of(wrong)
