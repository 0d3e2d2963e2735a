import json

import pytest

from nnunet_kd.study.runs import OtherNetwork, list_runs, rows_of_file, rows_of_methods


def written(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_runs_come_fold_by_fold():
    runs = list_runs("P", rows_of_methods(["NoKD", "DCD"]), [0, 1], [None])
    assert [(run.fold, run.trainer, run.plans, run.seed) for run in runs] == [
        (0, "nnUNetTrainerNoKD", "P", None),
        (0, "nnUNetTrainerDCD", "P", None),
        (1, "nnUNetTrainerNoKD", "P", None),
        (1, "nnUNetTrainerDCD", "P", None),
    ]
    assert [run.plans for run in list_runs("P", rows_of_methods(["DCD"]), [0], [0, 7])] == ["P_seed0", "P_seed7"]


def test_trainers_are_given_with_or_without_their_prefix(tmp_path):
    rows = rows_of_methods(["KD", "nnUNetTrainerNoKD", "nnUNetTrainer"])
    assert [(row.name, row.trainer) for row in rows] == [
        ("KD", "nnUNetTrainerKD"),
        ("NoKD", "nnUNetTrainerNoKD"),
        ("nnUNetTrainer", "nnUNetTrainer"),
    ]
    (row,) = rows_of_file(written(tmp_path / "rows.json", {"mine": {"trainer": "nnUNetTrainerKD"}}))
    assert row.trainer == "nnUNetTrainerKD"
    with pytest.raises(ValueError, match="two rows are called KD"):
        list_runs("P", rows_of_methods(["KD", "nnUNetTrainerKD"]), [0], [None])


def test_rows_of_a_file(tmp_path):
    listed = {
        "DCD + logits": {"trainer": "KD", "method": {"terms": [{"name": "dcd"}, {"name": "logits"}]}},
        "DCD, λ 0.1": {"trainer": "DCD", "method": {"weight": 0.1}, "training": {"ema_decay": 0.9}},
        "as it is": {"trainer": "CWD"},
    }
    one, two, three = list_runs("P", rows_of_file(written(tmp_path / "rows.json", listed)), [0], [3])
    assert (one.method, one.trainer, one.plans) == ("DCD + logits", "nnUNetTrainerKD", "P_dcd-logits_seed3")
    assert (two.plans, two.settings) == (
        "P_dcd-0.1_seed3",
        {"method": {"weight": 0.1}, "training": {"ema_decay": 0.9}},
    )
    assert (three.trainer, three.plans, three.settings) == ("nnUNetTrainerCWD", "P_seed3", {})
    assert not three.network.differs


def test_rows_of_other_networks(tmp_path):
    listed = {
        "DRA-UNet": {"trainer": "NoKD", "network": "dra_unet", "arch_kwargs": {"attention": False}},
        "wide": {"trainer": "NoKD", "plans": "P_r2"},
        "wide, averaged": {"trainer": "NoKD", "plans": "P_r2", "training": {"ema_decay": 0.9}},
    }
    runs = list_runs("P", rows_of_file(written(tmp_path / "rows.json", listed)), [0], [None])
    assert [run.plans for run in runs] == ["P_dra-unet", "P_r2", "P_r2_wide-averaged"]
    assert runs[0].network == OtherNetwork(None, "dra_unet", {"attention": False})
    assert all(run.network.differs for run in runs)
    twice = {"one": {"trainer": "NoKD", "plans": "P_r2"}, "two": {"trainer": "NoKD", "plans": "P_r2"}}
    with pytest.raises(ValueError, match="the rows one and two would have the same plans P_r2"):
        list_runs("P", rows_of_file(written(tmp_path / "twice.json", twice)), [0], [None])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "row 'a' must be an object with a trainer"),
        ({"a": {"method": {}}}, "row 'a' must be an object with a trainer"),
        ({"a": {"trainer": "DCD", "methods": {}}}, "unknown key 'methods' in .*row 'a': did you mean 'method'"),
        ({"a": {"trainer": "DCD", "method": 3}}, "row 'a': method must be an object, got 3"),
        ({"λ": {"trainer": "DCD"}}, "row 'λ': a name needs a letter or a digit"),
        ({"teacher": {"trainer": "DCD"}}, "row 'teacher': a name cannot contain a slash, .* or be teacher"),
        ({"/a": {"trainer": "DCD"}}, "row '/a': a name cannot contain a slash"),
        ({"a": {"trainer": "DCD", "network": "dra_une"}}, "unknown key 'dra_une' in the networks of .*: did you mean"),
        ({"a": {"trainer": "DCD", "network": 3}}, "row 'a': network must be a name, got 3"),
        ({"a": {"trainer": "DCD", "plans": {}}}, "row 'a': plans must be a name"),
        ({"a": {"trainer": "DCD", "arch_kwargs": 3}}, "row 'a': arch_kwargs must be an object, got 3"),
        ([], "is not a JSON object"),
    ],
)
def test_wrong_files_of_rows(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        rows_of_file(written(tmp_path / "rows.json", rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"NoKD": {"trainer": "DCD"}}, "two rows are called NoKD"),
        ({"none": {"trainer": "NoKD"}}, "the rows NoKD and none would have the same plans P$"),
        (
            {"DCD a": {"trainer": "DCD"}, "dcd_a": {"trainer": "KD"}},
            "the rows DCD a and dcd_a would have the same folder",
        ),
        (
            {"a b": {"trainer": "DCD", "method": {"levels": 1}}, "A-b": {"trainer": "KD", "method": {"levels": 2}}},
            "the rows a b and A-b would have the same plans P_a-b",
        ),
    ],
)
def test_rows_must_differ(tmp_path, rows, message):
    listed = rows_of_methods(["NoKD"]) + rows_of_file(written(tmp_path / "rows.json", rows))
    with pytest.raises(ValueError, match=message):
        list_runs("P", listed, [0], [None])
