"""Models from zip files, folders and nnUNet_results, and what is refused in one sentence."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model

from nnunet_kd.teachers.models import opened_model, unpack_model
from nnunet_kd.teachers.teacher import fold_predictor

NAME = "Dataset598_TinyHeads/nnUNetTrainer__nnUNetPlans__3d_fullres"


def open_it(workspace, given, **options):
    with opened_model(given, workspace.root / "store", **options) as model:
        fold_predictor(model.folds, torch.device("cpu"))
        return model


def add_folds(workspace, *folds):
    for fold in folds:
        shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / f"fold_{fold}")


@pytest.fixture
def archive(workspace):
    """Return the zip file of nnU-Net's own export, with the models of two configurations."""
    path = workspace.root / "model.zip"
    for configuration in ("3d_fullres", "2d"):
        fold = workspace.results / f"nnUNetTrainer__nnUNetPlans__{configuration}" / "fold_0"
        (fold / "progress.png").touch()
        (fold / "validation").mkdir(exist_ok=True)
        (fold / "validation" / "summary.json").write_text('{"metric_per_case": [{"prediction_file": "x/a.nii.gz"}]}')
    export_pretrained_model(workspace.dataset, str(path), ("3d_fullres", "2d"), folds=(0,))
    return path


def test_a_zip_file_of_nnunet(workspace, archive):
    before = sorted(workspace.root.iterdir())
    model = open_it(workspace, archive, configuration="3d_fullres")
    assert model.name == NAME and [one.fold for one in model.folds] == [0]
    assert model.folds[0].kept_back == {"a"}
    assert sorted(workspace.root.iterdir()) == before  # nothing is left of what was unpacked
    assert open_it(workspace, archive, configuration="2d").experiment.configuration == "2d"
    with pytest.raises(
        ValueError, match="model.zip holds several models, .*: choose one by its config.* --model-config"
    ):
        open_it(workspace, archive, configuration="3d_lowres")


def test_unpacked_for_good(workspace, archive):
    folder = unpack_model(archive, workspace.root / "teacher", "3d_fullres")
    assert folder == workspace.root / "teacher" / NAME
    assert open_it(workspace, folder).name == NAME
    with pytest.raises(FileExistsError, match="teacher already exists"):
        unpack_model(archive, workspace.root / "teacher", "3d_fullres")


def test_folders_and_names(workspace, monkeypatch):
    assert open_it(workspace, workspace.teacher).name == open_it(workspace, NAME).name == NAME
    renamed = workspace.root / "teacher"
    shutil.copytree(workspace.teacher, renamed)
    assert open_it(workspace, renamed).name == NAME  # the checkpoint says what its folder was called
    path = renamed / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "init_args": {}}, path)
    with pytest.raises(ValueError, match="does not say which configuration it belongs to: call its results folder"):
        open_it(workspace, renamed)
    with pytest.raises(ValueError, match="Dataset598_TinyHeads holds several models"):
        open_it(workspace, workspace.results)
    assert open_it(workspace, workspace.results, configuration="2d").experiment.configuration == "2d"
    for given in ("Dataset999_X/nowhere", workspace.root / "nowhere.zip"):
        with pytest.raises(FileNotFoundError, match="there is no model .*nowhere.*: give a zip file, a results folder"):
            open_it(workspace, given)


@pytest.mark.parametrize(
    ("there", "given", "expected"),
    [
        ((0, 2, 10), None, [0, 2, 10]),
        ((0, 2, "all"), None, [0, 2]),
        ((0, "all"), ["all"], ["all"]),
        ((0, 2), ["all"], [0, 2]),
        ((0, 2, 3), ["3", "0", "3"], [3, 0]),
        (("all",), None, ["all"]),
    ],
)
def test_folds(workspace, there, given, expected):
    add_folds(workspace, *(fold for fold in there if fold != 0))
    if 0 not in there:
        shutil.rmtree(workspace.teacher / "fold_0")
    with opened_model(workspace.teacher, workspace.root / "store", given) as model:
        assert [one.fold for one in model.folds] == expected


def test_missing_folds_and_checkpoints(workspace):
    with pytest.raises(FileNotFoundError, match="has fold_0, but not fold_3"):
        open_it(workspace, workspace.teacher, folds=["3"])
    with pytest.raises(FileNotFoundError, match="has no fold with a checkpoint_other.pth"):
        open_it(workspace, workspace.teacher, checkpoint="checkpoint_other.pth")
    add_folds(workspace, 1)
    path = workspace.teacher / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "inference_allowed_mirroring_axes": (0,)}, path)
    with pytest.raises(ValueError, match="fold_1.* was trained with another trainer or other mirroring than fold 0"):
        open_it(workspace, workspace.teacher)


class Touch:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


def test_no_code_runs_unless_it_is_trusted(workspace, archive):
    evidence = str(workspace.root / "ran")
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "extra": Touch(evidence)}, path)
    export_pretrained_model(workspace.dataset, str(archive), ("3d_fullres",), folds=(0,))
    assert b"makedirs" in pickle.dumps(Touch(evidence))
    for given in (workspace.teacher, archive):
        with pytest.raises(
            ValueError, match="contains more than weights and numbers, .*If you trust.*give --trust"
        ) as told:
            open_it(workspace, given)
        assert not os.path.exists(evidence) and ".unfinished" not in str(told.value)
    assert open_it(workspace, archive, trust=True).name == NAME
    assert os.path.exists(evidence)


def test_networks_of_other_packages_need_trust(workspace):
    plans = json.loads((workspace.teacher / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "subprocess.Popen"
    (workspace.teacher / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"plans.json builds its network with 'subprocess.Popen'.* give --trust"):
        open_it(workspace, workspace.teacher)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((), "is not an exported model: it is empty"),
        (("readme.txt",), "is not an exported model: it holds 'readme.txt'"),
        ((f"{NAME}/plans.json", f"{NAME}/../../../evil"), "would write outside"),
    ],
)
def test_wrong_zip_files(workspace, entries, message):
    path = workspace.root / "wrong.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in entries:
            archive.writestr(name, "content")
    before = sorted(workspace.root.rglob("*"))
    with pytest.raises(ValueError, match=rf"wrong.zip {message}"):
        open_it(workspace, path)
    assert sorted(workspace.root.rglob("*")) == before
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="wrong.zip is not a zip file, or it is damaged"):
        open_it(workspace, path)


@pytest.mark.slow
def test_a_network_without_encoder_stages(workspace):
    """Primus, a transformer, predicts: only its logits are needed."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_kd.nnunet.experiment import Experiment, build_network

    name = "nnUNet_Primus_S_Trainer"
    plans = json.loads((workspace.teacher / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 24]
    folder = workspace.results / f"{name}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(workspace.teacher / "dataset.json", folder)
    experiment = Experiment(plans, "3d_fullres", workspace.dataset_json)
    network = build_network(recursive_find_trainer_class_by_name(name), experiment)
    assert not hasattr(network, "encoder")
    content = {
        "network_weights": network.state_dict(),
        "trainer_name": name,
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    with opened_model(folder, workspace.root / "store") as model:
        predict = fold_predictor(model.folds, torch.device("cpu"))
    images = torch.randn(3, 16, 24, 24).numpy()
    expected = network.eval()(torch.from_numpy(images)[None])[0]
    inner = (slice(None), *[slice(3, -3)] * 3)  # nnU-Net's weights of a window vanish in its corners
    torch.testing.assert_close(predict(images).float()[inner], expected[inner], atol=2e-2, rtol=2e-2)
