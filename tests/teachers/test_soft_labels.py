import json

import numpy as np
import pytest

from nnunet_kd.teachers.soft_labels import SoftLabelStore, find_store, make_soft_labels, store_folder

DATA = {"dataset": "Dataset001_X", "preprocessed": "P_3d", "heads": 2}
SOURCE = {"kind": "sam", "checkpoint_sha256": "abc", "prompt": "box"}


def logits_of(case, shape=(2, 11, 30, 25)):
    return np.random.default_rng(len(case)).normal(scale=8, size=shape)


@pytest.fixture
def store(tmp_path):
    made = SoftLabelStore(store_folder(tmp_path, "P_3d", "sam"))
    made.begin(DATA, SOURCE, ["a", "bb", "ccc"])
    return made


def test_what_is_written_is_read(store):
    store.write("a", logits_of("a"), (8, 16, 16))
    read = store.open("a")
    np.testing.assert_array_equal(read[:], logits_of("a").astype(np.float16))
    assert read.dtype == np.float16 and read.chunks[0] == 1 and read.chunks[1:] != read.shape[1:]
    np.testing.assert_array_equal(read[:, 2:4, 5:9, 0:3], logits_of("a").astype(np.float16)[:, 2:4, 5:9, 0:3])
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["cases"] == ["a", "bb", "ccc"] and manifest["versions"]["segment_anything"]
    assert store.name == "sam" and store.is_whole("a") and not store.is_whole("bb")


def test_large_logits_are_cut_to_half_precision_and_nan_is_refused(store):
    logits = logits_of("a")
    logits[0, 0, 0, 0] = 1e9
    store.write("a", logits, (8, 16, 16))
    assert store.open("a")[0, 0, 0, 0] == np.finfo(np.float16).max
    logits[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="case bb: the teacher's logits are not finite"):
        store.write("bb", logits, (8, 16, 16))
    assert sorted(path.name for path in store.folder.iterdir()) == ["a.b2nd", "a.json", "manifest.json"]


def test_interrupted_and_resumed_is_byte_identical(store, tmp_path):
    other = SoftLabelStore(tmp_path / "whole_soft_sam")
    other.begin(DATA, SOURCE, ["a", "bb", "ccc"])
    make_soft_labels(other, ["a", "bb", "ccc"], logits_of, (8, 16, 16))

    def interrupted(case):
        if case == "bb":
            raise KeyboardInterrupt
        return logits_of(case)

    with pytest.raises(KeyboardInterrupt):
        make_soft_labels(store, ["a", "bb", "ccc"], interrupted, (8, 16, 16))
    assert [store.is_whole(case) for case in ("a", "bb", "ccc")] == [True, False, False]
    made = []
    make_soft_labels(store, ["a", "bb", "ccc"], lambda case: made.append(case) or logits_of(case), (8, 16, 16))
    assert made == ["bb", "ccc"]
    for path in other.folder.iterdir():
        assert path.read_bytes() == (store.folder / path.name).read_bytes(), path.name


def test_another_source_is_refused_in_the_same_folder(store):
    store.begin(DATA, SOURCE, ["ccc", "bb", "a"])
    for section, key, value, message in (
        ("source", "checkpoint_sha256", "def", 'checkpoint_sha256 = "abc", not "def"'),
        ("source", "prompt", "points", 'prompt = "box", not "points"'),
        ("source", "margin", 3, "margin = null, not 3"),
        ("data", "heads", 3, "heads = 2, not 3"),
    ):
        data, source = ({**DATA, key: value}, SOURCE) if section == "data" else (DATA, {**SOURCE, key: value})
        with pytest.raises(ValueError, match=f"was begun with {message}: give --name another name"):
            store.begin(data, source, ["a", "bb", "ccc"])
    with pytest.raises(ValueError, match="was begun for other cases"):
        store.begin(DATA, SOURCE, ["a"])


def test_missing_and_truncated_files_are_named(store):
    with pytest.raises(ValueError, match=r"a\.b2nd: the file is missing"):
        store.check(DATA, ["a"])
    store.write("a", logits_of("a"), (8, 16, 16))
    store.check(DATA, ["a"])
    path = store.path("a")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"a\.b2nd: the file is damaged"):
        store.check(DATA, ["a"])
    assert not store.is_whole("a")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read the soft labels .*a\.b2nd: missing or damaged"):
        store.open("a")
    with pytest.raises(ValueError, match="are for heads = 2, this training has 5"):
        store.check({**DATA, "heads": 5}, [])
    (store.folder / "a.json").write_text("{")
    assert not store.is_whole("a")


def test_leakage_is_that_of_the_teachers_folds(store, tmp_path):
    assert store.leakage(0) is None  # SAM has seen none
    nnunet = SoftLabelStore(tmp_path / "P_soft_nnunet")
    nnunet.begin(DATA, {"kind": "nnunet", "folds": [0, 1]}, ["a"])
    assert "LEAKAGE: the soft labels 'nnunet' are of teachers (fold 1)" in nnunet.leakage(0)
    assert nnunet.leakage("all") is None
    same = SoftLabelStore(tmp_path / "P_soft_same")
    same.begin(DATA, {"kind": "nnunet", "folds": [0]}, ["a"])
    assert same.leakage(0) is None and same.leakage(3) is not None


def test_finding_a_store(tmp_path, store):
    assert find_store(tmp_path, "P_3d", None) == store == find_store(tmp_path, "P_3d", "sam")
    with pytest.raises(FileNotFoundError, match="there are no soft labels in"):
        find_store(tmp_path, "P_2d", None)
    with pytest.raises(FileNotFoundError, match="there are no soft labels 'x' in .*, only sam"):
        find_store(tmp_path, "P_3d", "x")
    SoftLabelStore(store_folder(tmp_path, "P_3d", "nnunet")).begin(DATA, SOURCE, ["a"])
    with pytest.raises(ValueError, match='there are several soft labels, nnunet, sam: .*"store": "nnunet"'):
        find_store(tmp_path, "P_3d", None)
    for name in ("", "a/b", "a_soft_b", "a b"):
        with pytest.raises(ValueError, match="a name of soft labels has letters"):
            store_folder(tmp_path, "P_3d", name)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="is no folder of soft labels"):
        _ = SoftLabelStore(tmp_path).manifest
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is no folder of soft labels"):
        _ = SoftLabelStore(tmp_path).manifest
