import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_kd.teachers.soft_labels import SoftLabelStore, find_store, make_soft_labels, store_folder

DATA = {"dataset": "Dataset001_X", "preprocessed": "P_3d", "heads": 2}
SOURCE = {"kind": "sam", "checkpoint_sha256": "abc", "prompt": "box"}


def logits_of(case, shape=(2, 11, 30, 25)):
    return np.random.default_rng(len(case)).normal(scale=8, size=shape)


class Cases:
    """Preprocessed cases whose images and labels are their names."""

    configuration = SimpleNamespace(patch_size=(8, 16, 16))
    preprocessed_again: tuple = ()
    changed: tuple = ()

    def fingerprint(self, case):
        own = hashlib.sha256(case.encode()).hexdigest()
        return {part: own + part * (part in self.changed) for part in ("images", "labels")}

    def modified(self, case):
        return 2**61 if case in self.preprocessed_again else 0


def write(store, case, logits=None):
    logits = logits_of(case) if logits is None else logits
    store.write(case, logits, Cases.configuration.patch_size, Cases().fingerprint(case))


@pytest.fixture
def store(tmp_path):
    made = SoftLabelStore(store_folder(tmp_path, "P_3d", "sam"))
    made.begin(DATA, SOURCE, ["a", "bb", "ccc"])
    return made


def test_written_logits_are_read_back(store):
    write(store, "a")
    read = store.open("a")
    np.testing.assert_array_equal(read[:], logits_of("a").astype(np.float16))
    assert read.dtype == np.float16 and read.chunks[0] == 1 and read.chunks[1:] != read.shape[1:]
    np.testing.assert_array_equal(read[:, 2:4, 5:9, 0:3], logits_of("a").astype(np.float16)[:, 2:4, 5:9, 0:3])
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["cases"] == ["a", "bb", "ccc"] and manifest["versions"]["segment_anything"]
    assert store.name == "sam" and store.fault("a") is None and store.fault("bb") == "is missing"


def test_large_logits_are_clipped_to_half_precision_and_infinite_ones_refused(store):
    logits = logits_of("a")
    logits[0, 0, 0, 0] = 1e9
    write(store, "a", logits)
    assert store.open("a")[0, 0, 0, 0] == np.finfo(np.float16).max
    for value in (np.nan, np.inf, -np.inf):
        logits[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="case bb: the teacher's soft labels are not finite"):
            write(store, "bb", logits)
    assert sorted(path.name for path in store.folder.iterdir()) == ["a.b2nd", "a.json", "manifest.json"]


def test_interrupted_and_resumed_is_byte_identical(store, tmp_path):
    other = SoftLabelStore(tmp_path / "whole_soft_sam")
    other.begin(DATA, SOURCE, ["a", "bb", "ccc"])
    make_soft_labels(other, Cases(), ["a", "bb", "ccc"], logits_of)

    def interrupted(case):
        if case == "bb":
            raise KeyboardInterrupt
        return logits_of(case)

    with pytest.raises(KeyboardInterrupt):
        make_soft_labels(store, Cases(), ["a", "bb", "ccc"], interrupted)
    todo = [case for case in ("a", "bb", "ccc") if store.fault(case, Cases(), thorough=True)]
    assert todo == ["bb", "ccc"]
    make_soft_labels(store, Cases(), todo, logits_of)
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
        with pytest.raises(ValueError, match=f"was created with {message}: choose another name with --name"):
            store.begin(data, source, ["a", "bb", "ccc"])
    with pytest.raises(ValueError, match="was created for other cases"):
        store.begin(DATA, SOURCE, ["a"])


def test_missing_and_truncated_files_are_named(store):
    with pytest.raises(ValueError, match=r"a\.b2nd: the file is missing"):
        store.check_cases(Cases(), ["a"])
    write(store, "a")
    store.check_cases(Cases(), ["a"])
    path = store.path("a")
    whole = path.read_bytes()
    path.write_bytes(bytes([*whole[:-100], whole[-100] ^ 1, *whole[-99:]]))
    assert store.fault("a") is None and store.fault("a", thorough=True) == "is damaged"  # one bit differs
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"a\.b2nd: the file is damaged"):
        store.check_cases(Cases(), ["a"])
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read the soft labels .*a\.b2nd: it is missing or damaged"):
        store.open("a")
    with pytest.raises(
        ValueError, match="are for heads = 2, but this training has 5: compute others with another --name"
    ):
        store.check_data({**DATA, "heads": 5})
    path.write_bytes(whole)
    assert store.fault("a", thorough=True) is None
    (store.folder / "a.json").write_text("{")
    assert store.fault("a") == "is damaged"


@pytest.mark.parametrize("changed", [("images",), ("labels",), ("images", "labels")])
def test_labels_of_a_case_that_has_changed_since_are_out_of_date(store, changed):
    write(store, "a")
    write(store, "bb")
    now = Cases()
    now.preprocessed_again, now.changed = ("bb",), changed
    store.check_cases(now, ["a"])
    message = rf"bb\.b2nd: the file is older than the preprocessed case, whose {' and '.join(changed)} have changed"
    with pytest.raises(ValueError, match=message):
        store.check_cases(now, ["a", "bb"])
    assert store.fault("bb") is None  # the file itself is intact


def test_a_case_that_was_preprocessed_again_unchanged_is_read_once(store, monkeypatch):
    write(store, "a")
    now = Cases()
    now.preprocessed_again = ("a",)
    store.check_cases(now, ["a"])
    monkeypatch.setattr(Cases, "fingerprint", lambda *_: pytest.fail("read again"))
    store.check_cases(now, ["a"])


def test_older_stores_do_not_know_their_images(store):
    """Older stores are accepted until a case is preprocessed again."""
    write(store, "a")
    record = store.folder / "a.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "made_from": Cases().fingerprint("a")["labels"]}))
    now = Cases()
    store.check_cases(now, ["a"])
    now.preprocessed_again = ("a",)
    with pytest.raises(ValueError, match="older than the preprocessed case and does not say from which images it was"):
        store.check_cases(now, ["a"])


def test_leakage_is_that_of_the_teachers_folds(store, tmp_path):
    assert store.leakage(0) is None  # SAM has seen no cases
    nnunet = SoftLabelStore(tmp_path / "P_soft_nnunet")
    nnunet.begin(DATA, {"kind": "nnunet", "folds": [0, 1]}, ["a"])
    assert "LEAKAGE: the soft labels 'nnunet' are of teachers (fold 1)" in nnunet.leakage(0)
    assert nnunet.leakage("all") is None
    same = SoftLabelStore(tmp_path / "P_soft_same")
    same.begin(DATA, {"kind": "nnunet", "folds": [0]}, ["a"])
    assert same.leakage(0) is None and same.leakage(3) is not None
    inherited = SoftLabelStore(tmp_path / "P_soft_inherited")
    inherited.begin(DATA, {"kind": "nnunet", "folds": [0], "leakage": ["LEAKAGE is possible: other data."]}, ["a"])
    assert inherited.leakage(0) == inherited.leakage("all") == "LEAKAGE is possible: other data."
    assert inherited.leakage(1).endswith("no estimate for new cases. LEAKAGE is possible: other data.")


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (
            {"kind": "sam", "model_type": "vit_l", "channels": [0, 2], "prompt": "points", "margin": 3},
            "--sam vit_l --checkpoint FILE --channels 0 2 --prompt points --margin 3 --name x",
        ),
        (
            {"kind": "nnunet", "folds": [2], "out_of_fold": False, "mirroring": False},
            "--teacher -f 2 --disable_tta --name x",
        ),
        ({"kind": "nnunet", "folds": [0, 1], "out_of_fold": True, "mirroring": True}, "--teacher --name x"),
    ],
)
def test_arguments_that_compute_the_labels_again(tmp_path, source, arguments):
    store = SoftLabelStore(store_folder(tmp_path, "P_3d", "x"))
    store.begin(DATA, source, ["a"])
    assert store.arguments == arguments


def test_finding_a_store(tmp_path, store):
    with pytest.raises(FileNotFoundError, match="there are no soft labels in"):
        find_store(tmp_path, "P_3d", None)  # created, but its first case has failed
    write(store, "a")
    assert find_store(tmp_path, "P_3d", None) == store == find_store(tmp_path, "P_3d", "sam")
    with pytest.raises(FileNotFoundError, match="there are no soft labels in"):
        find_store(tmp_path, "P_2d", None)
    with pytest.raises(FileNotFoundError, match="there are no soft labels 'x' in .*, only sam"):
        find_store(tmp_path, "P_3d", "x")
    other = SoftLabelStore(store_folder(tmp_path, "P_3d", "nnunet"))
    other.begin(DATA, SOURCE, ["a"])
    assert find_store(tmp_path, "P_3d", None) == store
    write(other, "a")
    with pytest.raises(ValueError, match='there are several stores of soft labels, nnunet, sam: .*"store": "nnunet"'):
        find_store(tmp_path, "P_3d", None)
    for name in ("", "a/b", "a_soft_b", "a b"):
        with pytest.raises(ValueError, match="the name of soft labels must consist of letters"):
            store_folder(tmp_path, "P_3d", name)


def test_a_folder_that_is_not_a_store(tmp_path):
    with pytest.raises(ValueError, match="is not a folder of soft labels"):
        _ = SoftLabelStore(tmp_path).manifest
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not a folder of soft labels"):
        _ = SoftLabelStore(tmp_path).manifest
