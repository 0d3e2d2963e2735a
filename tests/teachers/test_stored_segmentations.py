"""Segmentations that stored soft labels imply, and the voxels of their classes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.teachers.soft_labels import SoftLabelStore
from nnunet_kd.teachers.stored_segmentations import StoredSegmentation, TeacherLocations

SHAPE = (9, 10, 11)
CLASSES = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
every_kind = pytest.mark.parametrize("labels", [CLASSES, REGIONS], ids=["classes", "regions"])


def logits_of(labels, seed=0):
    heads = 2 if labels.has_regions else 3
    return np.random.default_rng(seed).normal(-0.5, 1, (heads, *SHAPE)).astype(np.float16)


def write(store, labels, seed=0):
    store.write("one", logits_of(labels, seed), (8, 8, 8), {"images": "", "labels": ""})


@pytest.fixture
def store(tmp_path):
    return SoftLabelStore(tmp_path / "plans_soft_model")


@every_kind
def test_the_segmentation_is_that_of_nnunet(store, labels):
    write(store, labels)
    stored = StoredSegmentation(store.open("one"), labels)
    expected = labels.convert_logits_to_segmentation(logits_of(labels).astype(np.float32))[None]
    assert stored.shape == (1, *SHAPE) and {*np.unique(expected)} == {0, 1, 2}
    np.testing.assert_array_equal(stored.whole(), expected)
    crop = (slice(None), slice(2, 6), slice(0, 3), slice(5, 11))
    np.testing.assert_array_equal(stored[crop], expected[crop])
    assert stored[crop].dtype == np.int16


def test_only_slabs_and_crops_are_read():
    reads = []

    class Spy:
        shape, chunks = (3, *SHAPE), (3, 4, *SHAPE[1:])

        def __getitem__(self, where):
            reads.append(where)
            return logits_of(CLASSES)[where]

    stored = StoredSegmentation(Spy(), CLASSES)
    expected = logits_of(CLASSES).argmax(0)[None]
    np.testing.assert_array_equal(stored.whole(), expected)
    assert [(where[1].start, where[1].stop) for where in reads] == [(0, 4), (4, 8), (8, 12)]


@every_kind
def test_locations_are_those_that_nnunet_samples(store, labels):
    write(store, labels)
    locations = TeacherLocations(store, labels)
    assert locations.make("one") and not locations.make("one")
    found = TeacherLocations(store, labels).read("one")
    segmentation = StoredSegmentation(store.open("one"), labels).whole()
    assert [*found] == ([(1, 2), 2] if labels.has_regions else [1, 2])
    for key, voxels in found.items():
        there = np.isin(segmentation, key)
        assert len(voxels) == there.sum() and there[tuple(voxels.T)].all()  # all of them, because they are few
        assert voxels.dtype == np.int64  # nnU-Net subtracts from them


def test_the_number_of_locations_is_bounded(store):
    logits = np.zeros((3, 30, 40, 50), np.float16)
    logits[1] = 1
    store.write("one", logits, (16, 16, 16), {"images": "", "labels": ""})
    locations = TeacherLocations(store, CLASSES)
    locations.make("one")
    found = locations.read("one")
    assert len(found[1]) == 10000 and found[2].shape == (0, 4)
    assert store.locations("one").stat().st_size < 100_000


def test_locations_belong_to_their_soft_labels(store):
    write(store, CLASSES)
    TeacherLocations(store, CLASSES).make("one")
    before = TeacherLocations(store, CLASSES).read("one")
    write(store, CLASSES, seed=1)
    again = TeacherLocations(store, CLASSES)
    assert again.make("one") and not again.make("one")
    assert not np.array_equal(again.read("one")[1], before[1])


@pytest.mark.parametrize("damage", [b"", b"no archive", None], ids=["empty", "other", "cut"])
def test_damaged_locations_are_found_again(store, damage):
    write(store, CLASSES)
    locations = TeacherLocations(store, CLASSES)
    locations.make("one")
    path = store.locations("one")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30] if damage is None else damage)
    with pytest.raises(ValueError, match=r"cannot read .*one\.npz: remove it, and the next training makes it again"):
        locations.read("one")
    assert locations.make("one") and path.read_bytes()[:2] == whole[:2]
    assert [one.name for one in store.folder.glob("*.npz*")] == ["one.npz"]  # nothing unfinished


def test_a_missing_record_is_named(store):
    write(store, CLASSES)
    record = store.folder / "one.json"
    record.write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"cannot read .*one\.json: it is missing or damaged"):
        TeacherLocations(store, CLASSES).make("one")


def test_a_folder_that_cannot_be_written_to(store, read_only):
    write(store, CLASSES)
    elsewhere = SoftLabelStore(read_only(store.folder))
    locations = TeacherLocations(elsewhere, CLASSES)
    assert locations.make("one")
    expected = SimpleNamespace(writable=TeacherLocations(store, CLASSES))
    expected.writable.make("one")
    for key, voxels in expected.writable.read("one").items():
        np.testing.assert_array_equal(locations.read("one")[key], voxels)
    assert not elsewhere.locations("one").exists()
