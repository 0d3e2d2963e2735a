"""nnU-Net's postprocessing.pkl is recognised, and nothing that a pickle names is run."""

import os
import pickle
import shutil
import time

import numpy as np
import pytest
from nnunetv2.postprocessing.remove_connected_components import (
    remove_all_but_largest_component_from_segmentation as largest,
)

from nnunet_kd.nnunet.trust.postprocessing import is_postprocessing

FUNCTION = f"c{largest.__module__}\n{largest.__name__}\n".encode()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "labels", [[], [np.int64(1), np.int64(2)], [np.int32(7)], [(1, 2), 3], [[np.int64(1), (np.int64(2), 3)]]]
)
def test_steps_of_labels_and_regions(tmp_path, protocol, labels):
    path = tmp_path / "postprocessing.pkl"
    path.write_bytes(pickle.dumps(([largest] * len(labels), [{"labels_or_regions": one} for one in labels]), protocol))
    assert is_postprocessing(path)


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def steps(labels, functions=(largest,), **more):
    return pickle.dumps((list(functions), [{"labels_or_regions": labels, **more}]))


NUMBER = steps(np.int64(1))
# Each pickle with the effect of loading it: a folder, another type, a crash, or exhausted memory.
FOREIGN = {
    "a call of the system": lambda mark: pickle.dumps(Calls(os.mkdir, mark)),
    "the same for a label": lambda mark: steps(Calls(os.mkdir, mark)),
    "the same, thrown away": lambda mark: b"\x80\x04" + pickle.dumps(Calls(os.mkdir, mark))[2:-1] + b"0" + NUMBER[2:],
    "an old-fashioned call": lambda mark: b"(S'" + mark.encode() + b"'\nios\nmkdir\n.",
    "another function": lambda _: steps(1, [shutil.rmtree]),
    "nnU-Net's function, called": lambda _: FUNCTION + b"(tR.",
    "nnU-Net's function, changed": lambda _: FUNCTION + b"(N(S'__doc__'\nS'x'\ndtb.",
    "NumPy's type, changed": lambda _: b"cnumpy\ndtype\n(N(S'x'\nS'x'\ndtb.",
    "an object for a number": lambda _: NUMBER.replace(b"\x8c\x02i8", b"\x8c\x02O8"),
    "a type without end": lambda _: NUMBER.replace(b"\x8c\x02i8", b"\x8c\x0bi9999999999"),
    "a number of fewer bytes": lambda _: NUMBER.replace(b"C\x08\1\0\0\0\0\0\0\0", b"C\x01\1"),
    "another state of a type": lambda _: NUMBER.replace(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff", b"J\xff\xff\xff\x7fK\1"),
    "a real number": lambda _: steps(np.float64(1)),
    "an array": lambda _: steps(np.arange(3)),
    "a text": lambda _: steps("1"),
    "another keyword": lambda _: steps(1, background_label=1),
    "more functions than keywords": lambda _: steps(1, [largest, largest]),
    "no steps": lambda _: pickle.dumps([1]),
    "a place in memory without end": lambda _: b"\x80\x04Nr\xff\xff\xff\xff0" + NUMBER[2:],
    "a code of the registry": lambda _: b"\x82\x01.",
    "half a file": lambda _: NUMBER[:-20],
    "nothing": lambda _: b"",
    "a large file": lambda _: steps(list(range(10**6))),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_pickles_are_refused(tmp_path, name):
    path, mark = tmp_path / "postprocessing.pkl", tmp_path / "mark"
    path.write_bytes(FOREIGN[name](str(mark)))
    assert not is_postprocessing(path)
    assert not mark.exists()


def test_a_repeated_object_is_visited_once(tmp_path):
    path = tmp_path / "postprocessing.pkl"
    region = tuple(range(1000))
    labels = [region] * 50_000
    path.write_bytes(pickle.dumps(([largest] * 50_000, [{"labels_or_regions": labels}] * 50_000)))
    begun = time.process_time()
    assert is_postprocessing(path) and time.process_time() - begun < 10
