"""Channel and label maps, each against the formula written out by hand."""

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_kd.teachers.mapping import CERTAIN, ChannelMap, Heads, LabelMap

MODALITIES = {"channel_names": {"0": "T1", "1": "T1CE", "2": "T2", "3": "FLAIR"}}
ORGANS = {"labels": {"background": 0, "liver": 1, "left": 2, "right": 3, "cyst": 4}}
NESTED = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}
APART = {"labels": {"background": 0, "left": [1, 2], "right": [3, 4]}, "regions_class_order": [1, 3]}


def channels(*names):
    return {"channel_names": {str(number): name for number, name in enumerate(names)}}


def labels(*names, **more):
    return {"labels": {"background": 0, **{name: number for number, name in enumerate(names, 1)}, **more}}


def logits_of(heads, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=4, size=(heads, 3, 4, 5)))


@pytest.mark.parametrize(
    ("given", "student", "expected"),
    [
        (None, ("t1ce", "FLAIR"), (1, 3)),
        (None, ("FLAIR", "T2", "T1CE", "T1"), (3, 2, 1, 0)),
        (None, ("t1", "t1c", "t2", "flair"), (0, 1, 2, 3)),
        (None, ("zscore", "zscore", "zscore", "zscore"), (0, 1, 2, 3)),
        ([3, 0], ("one", "two"), (3, 0)),
    ],
)
def test_channels_are_matched(given, student, expected):
    found = ChannelMap.of(given, MODALITIES, channels(*student))
    assert found.channels == expected
    assert found.missing == tuple(sorted({0, 1, 2, 3} - {*expected}))
    assert found.is_identity == (expected == (0, 1, 2, 3))


def test_the_sources_of_the_teachers_channels():
    assert ChannelMap.of([3, 0, 1, 2], MODALITIES, channels(*"abcd")).sources() == [1, 2, 3, 0]
    with pytest.raises(ValueError, match=r"the student's images lack the teacher's channel 0 \(T1\), 2 \(T2\)"):
        ChannelMap.of(None, MODALITIES, channels("T1CE", "FLAIR")).sources()


@pytest.mark.parametrize(
    ("given", "student", "message"),
    [
        (None, ("CT",), r"channels \(CT\) cannot be matched with those of the teacher \(T1, T1CE, T2, FLAIR\)"),
        (None, ("T1", "T2", "PD", "FLAIR"), "cannot be matched"),
        ([0], ("T1", "T2"), r"one entry for each of the student's 2 channels \(T1, T2\), got 1: 0"),
        ([4], ("T1",), "names channel 4, but the teacher has channels 0 to 3"),
        ([-1], ("T1",), "names channel -1, but"),
        ([True], ("T1",), "names channel True, but"),
        ([2, 2], ("T1", "T2"), "names a channel of the teacher twice: 2 2"),
    ],
)
def test_wrong_channel_maps_are_refused(given, student, message):
    with pytest.raises(ValueError, match=message):
        ChannelMap.of(given, MODALITIES, channels(*student))


@pytest.mark.parametrize(
    "dataset", [ORGANS, NESTED, APART, labels("a", ignore=2), {"labels": {"b": 2, "a": 1, "background": 0}}]
)
def test_heads_are_those_of_nnunet(dataset):
    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
    heads = Heads.of(dataset)
    assert heads.are_regions == manager.has_regions and len(heads.labels) == manager.num_segmentation_heads
    theirs = manager.foreground_regions if manager.has_regions else manager.all_labels
    assert [sorted(one) for one in heads.labels] == [np.atleast_1d(one).tolist() for one in theirs]
    assert "background" not in heads.structures and "ignore" not in heads.names


@pytest.mark.parametrize("dataset", [ORGANS, NESTED])
def test_the_same_structures_are_left_as_they_are(dataset):
    found = LabelMap.of(None, dataset, {**dataset, "labels": {**dataset["labels"], "ignore": 5}})
    assert found.is_identity
    logits = logits_of(len(found.teacher.labels))
    assert torch.equal(found(logits), logits.float())


@pytest.mark.parametrize("dim", [0, 1])
def test_merged_labels_add_up_and_dropped_ones_become_background(dim):
    found = LabelMap.of({"kidneys": ["left", "right"]}, ORGANS, labels("kidneys", "Liver"))
    assert found.groups == ((0, 4), (2, 3), (1,)) and not found.is_identity
    assert found.description == {"kidneys": ["left", "right"], "Liver": ["liver"]}
    logits = logits_of(5)
    p = torch.softmax(logits, 0)
    expected = torch.stack([p[0] + p[4], p[2] + p[3], p[1]])
    mapped = found(logits if dim == 0 else logits[None], dim).exp()
    torch.testing.assert_close(mapped if dim == 0 else mapped[0], expected.float())
    named = LabelMap.of({"kidneys": ["left", "right"], "background": ["cyst"]}, ORGANS, labels("kidneys", "liver"))
    assert named.groups == found.groups


def test_renumbered_labels_are_reordered():
    found = LabelMap.of(None, ORGANS, labels("cyst", "right", "left", "liver"))
    assert found.groups == ((0,), (4,), (3,), (2,), (1,)) and not found.is_identity
    logits = logits_of(5)
    torch.testing.assert_close(found(logits).exp(), torch.softmax(logits, 0)[[0, 4, 3, 2, 1]].float())


def test_labels_become_regions():
    student = {"labels": {"background": 0, "organ": [1, 2], "cyst": 2}, "regions_class_order": [1, 2]}
    found = LabelMap.of({"organ": ["liver", "cyst"]}, ORGANS, student)
    logits = logits_of(5)
    p = torch.softmax(logits, 0)
    torch.testing.assert_close(torch.sigmoid(found(logits)), torch.stack([p[1] + p[4], p[4]]).float())
    assert torch.isfinite(found(logits * 1000)).all() and found(logits * 1000).abs().max() == CERTAIN


def test_unions_of_regions():
    student = {"labels": {"background": 0, "tumour": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    logits = logits_of(3)
    p = torch.sigmoid(logits)
    nested = LabelMap.of({"tumour": ["whole", "enhancing"]}, NESTED, student)
    expected = torch.stack([torch.maximum(p[0], p[2]), p[1]]).float()
    torch.testing.assert_close(torch.sigmoid(nested(logits)), expected)
    torch.testing.assert_close(nested(logits)[1], logits[1].float())
    both = {"labels": {"background": 0, "kidneys": [1, 2]}, "regions_class_order": [1]}
    apart = LabelMap.of({"kidneys": ["left", "right"]}, APART, both)
    torch.testing.assert_close(
        torch.sigmoid(apart(logits[:2])[0]), (p[0] + p[1]).clamp_max(1).float(), atol=2e-7, rtol=0
    )


def test_regions_become_labels_that_exclude_each_other():
    found = LabelMap.of({"edema": ["whole"]}, NESTED, labels("edema", "core"))
    assert found.groups == ((), (0,), (1,))
    p = torch.sigmoid(logits_of(3))
    p, _ = p.sort(0, descending=True)  # nested regions, as a good teacher predicts them
    mapped = found(torch.logit(p)).exp()
    torch.testing.assert_close(mapped, torch.stack([1 - p[0], p[0] - p[1], p[1]]).float(), atol=1e-6, rtol=0)
    whole = LabelMap.of({"tumour": ["whole"]}, NESTED, labels("tumour"))
    torch.testing.assert_close(whole(torch.logit(p)).exp(), torch.stack([1 - p[0], p[0]]).float(), atol=1e-6, rtol=0)
    contradicting = found(torch.logit(p.flip(0))).exp()  # a core larger than the whole
    torch.testing.assert_close(contradicting.sum(0), torch.ones(3, 4, 5))
    torch.testing.assert_close(contradicting[2], p[1].float(), atol=1e-6, rtol=0)
    disjoint = LabelMap.of(None, APART, labels("left", "right"))(torch.full((2, 1, 1, 1), 3.0)).exp()
    torch.testing.assert_close(disjoint.flatten(), torch.tensor([0, 0.5, 0.5]), atol=1e-6, rtol=0)


def test_where_the_teacher_has_seen_nothing_is_background():
    torch.testing.assert_close(
        LabelMap.of(None, ORGANS, labels("liver")).background().exp(), torch.tensor([1.0, 0.0]), atol=2e-7, rtol=0
    )
    chances = torch.sigmoid(LabelMap.of(None, NESTED, NESTED).background())
    torch.testing.assert_close(chances, torch.zeros(3), atol=2e-7, rtol=0)


@pytest.mark.parametrize(
    ("given", "student", "message"),
    [
        ({"kidney": ["left"]}, labels("liver"), "the label map names 'kidney', but the student has liver"),
        ({"liver": ["Leber"]}, labels("liver"), "names 'Leber', but the teacher has liver, left, right, cyst"),
        ({"liver": ["background"]}, labels("liver"), "names 'background', but the teacher has liver"),
        (
            {"liver": ["liver"], "ignore": ["cyst"]},
            labels("liver", ignore=2),
            "names 'ignore', but the student has liver",
        ),
        ({"liver": "liver"}, labels("liver"), "must list names of the teacher's structures for 'liver', got 'liver'"),
        ({"liver": [1]}, labels("liver"), r"for 'liver', got \[1\]"),
        (None, labels("spleen"), "the teacher has no structure for 'spleen' of the student: name some of liver, left"),
        ({"liver": []}, labels("liver"), "the teacher has no structure for 'liver'"),
        ({"a": ["cyst"], "b": ["cyst"]}, labels("a", "b"), "gives 'cyst' of the teacher to two structures"),
        ({"liver": ["cyst"], "background": ["cyst"]}, labels("liver"), "gives 'cyst' of the teacher to two"),
    ],
)
def test_wrong_label_maps_are_refused(given, student, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.of(given, ORGANS, student)
