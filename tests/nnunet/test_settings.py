"""Any ``nnunet_kd`` block is either read back unchanged or refused in one sentence that names the key."""

import json
from dataclasses import asdict, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_kd.nnunet.settings import StudentSettings, TeacherSettings, TrainingSettings, read_settings, with_leakage

SECTIONS = {"student": StudentSettings, "teacher": TeacherSettings, "training": TrainingSettings}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def section(kind):
    """Draw an object with the keys of a section, values of any type, and sometimes an unknown key."""
    names = st.sampled_from([entry.name for entry in fields(kind)]) | st.text(max_size=6)
    plausible = st.sampled_from(
        [None, 1, 2, 4, 0.5, 1000, "same", "all", [0, 1], "adamw", "plans", True, {"0": "seen"}, {"a": ["b"]}]
    )
    return st.dictionaries(names, plausible | anything, max_size=4)


blocks = st.fixed_dictionaries(
    {},
    optional={
        "student": section(StudentSettings) | anything,
        "teacher": section(TeacherSettings) | st.lists(section(TeacherSettings), max_size=2) | anything,
        "training": section(TrainingSettings) | anything,
        "method": st.dictionaries(st.text(max_size=6), anything, max_size=3) | anything,
        "metod": anything,
    },
)


@settings(max_examples=400, deadline=None)
@given(blocks | anything)
def test_a_block_is_read_back_or_refused_with_its_key(block):
    try:
        first = read_settings({"nnunet_kd": block})
    except ValueError as error:
        text = str(error)
        assert "nnunet_kd" in text and len(text.splitlines()) == 1
        return
    again = {
        "teacher": [asdict(one) for one in first.teachers],
        "training": asdict(first.training),
        "method": first.method,
        **({} if first.student is None else {"student": asdict(first.student)}),
    }
    assert repr(read_settings({"nnunet_kd": json.loads(json.dumps(again))})) == repr(first)


@pytest.mark.parametrize("name", SECTIONS)
def test_defaults_are_accepted(name):
    """Writing a default explicitly has the same effect as omitting it."""
    values = asdict(SECTIONS[name]())
    assert read_settings({"nnunet_kd": {name: values}}) is not None
    default = read_settings({})
    if name != "student":
        assert read_settings({"nnunet_kd": {name: values}}) == default


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from("01234"), st.text(min_size=1, max_size=9), max_size=5))
def test_leakage_is_read_back(warnings):
    plans = with_leakage({"plans_name": "p", "nnunet_kd": {"teacher": [{}, {"folds": "all"}]}}, warnings)
    (first, second) = read_settings(plans).teachers
    assert (first.leakage or {}) == warnings and second.leakage is None


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"chanels": [0]}, r"unknown key 'chanels' in nnunet_kd.teacher: did you mean 'channels'\?"),
        ({"labelmap": {}}, r"unknown key 'labelmap' in nnunet_kd.teacher: did you mean 'label_map'\?"),
        ({"channels": ["T1"]}, r"nnunet_kd.teacher.channels must be a list of whole numbers or null, got \['T1'\]"),
        ({"channels": [True]}, "nnunet_kd.teacher.channels must be a list of whole numbers"),
        ({"channels": []}, r"nnunet_kd.teacher.channels must be numbers of channels such as \[0, 3\], got \[\]"),
        ({"channels": [-1]}, r"nnunet_kd.teacher.channels must be numbers of channels such as \[0, 3\], got \[-1\]"),
        ({"label_map": {"lung": "left"}}, "nnunet_kd.teacher.label_map must be an object of lists of names"),
        ({"label_map": {"lung": [1]}}, "nnunet_kd.teacher.label_map must be an object of lists of names"),
    ],
)
def test_maps_of_the_wrong_type_are_refused(teacher, message):
    with pytest.raises(ValueError, match=message):
        read_settings({"nnunet_kd": {"teacher": teacher}})


def test_maps_are_read():
    (teacher,) = read_settings(
        {"nnunet_kd": {"teacher": {"channels": [3, 0], "label_map": {"lung": ["left"]}}}}
    ).teachers
    assert teacher.channels == [3, 0] and teacher.label_map == {"lung": ["left"]}
