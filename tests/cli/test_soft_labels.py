import json
import os
import shutil

import blosc2
import numpy as np
import pytest
import segment_anything
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_kd.cli import main
from nnunet_kd.teachers.sam import ABSENT, SamTeacher
from nnunet_kd.teachers.soft_labels import SoftLabelStore
from tests.conftest import SHORT
from tests.small_networks import tiny_sam
from tests.training import variants


@pytest.fixture
def sam(workspace, monkeypatch):
    """Write the weights of a tiny SAM; return the options that name them."""
    monkeypatch.setitem(segment_anything.sam_model_registry, "tiny", tiny_sam)
    torch.manual_seed(0)
    path = workspace.root / "sam.pth"
    torch.save(tiny_sam().state_dict(), path)
    return ("--sam", "tiny", "--checkpoint", str(path))


def make_own(path):
    """Replace a link shared with other tests by a copy."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def writable(path):
    """Open a preprocessed array for changes."""
    make_own(path)
    return blosc2.open(str(path), mode="a")


def make(*words):
    return main(["soft-labels", "-d", "598", "-device", "cpu", *words])


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
@pytest.mark.parametrize("regions", [False, True])
def test_sams_logits_of_every_case(workspace, sam, capsys, configuration, regions):
    if regions:
        variants.use_regions(workspace)
    assert make("-c", configuration, *sam, "--channels", "0", "2") == 0
    data = workspace.preprocessed / f"nnUNetPlans_{configuration}"
    store = SoftLabelStore(workspace.preprocessed / f"nnUNetPlans_{configuration}_soft_sam")
    dataset = nnUNetDatasetBlosc2(str(data))
    assert f"6 of 6 cases in {store.folder}" in capsys.readouterr().out
    for case in dataset.identifiers:
        logits, segmentation = store.open(case)[:], np.asarray(dataset.load_case(case)[1][0])
        if regions:
            present = [np.isin(segmentation, (1, 2)), segmentation == 2]
        else:
            assert (logits[0] == 0).all()
            logits, present = logits[1:], [segmentation == 1, segmentation == 2]
        assert len(logits) == 2
        for one, where in zip(logits, present, strict=True):
            asked = where.any((1, 2))  # axis 0 has the largest spacing
            assert (one[~asked] == ABSENT).all() and (one[asked] != ABSENT).any((1, 2)).all()
    source = store.manifest["source"]
    assert source["channels"] == [0, 2] and source["prompt"] == "box" and source["axis"] == 0
    assert source["checkpoint_sha256"] and source["window"] == [0.5, 99.5]


def test_margin_and_channels_reach_sam(workspace, sam):
    assert make(*sam) == 0
    assert make(*sam, "--margin", "5", "--channels", "1", "--name", "wide") == 0
    folder = workspace.preprocessed
    stores = [SoftLabelStore(folder / f"nnUNetPlans_3d_fullres_soft_{name}") for name in ("sam", "wide")]
    sources = [store.manifest["source"] for store in stores]
    assert [(source["margin"], source["channels"]) for source in sources] == [(2, [0, 1, 2]), (5, [1])]
    assert not np.array_equal(*(store.open("head_000")[:] for store in stores))


def test_parts_and_a_resumed_run_give_the_same_files(workspace, sam, capsys, monkeypatch):
    assert make(*sam, "--name", "whole") == 0
    assert make(*sam, "-num_parts", "2", "-part_id", "1") == 0
    assert "3 of 6 cases" in capsys.readouterr().out
    write = SoftLabelStore.write
    calls = []

    def stopped(self, case, *rest):
        calls.append(case)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, case, *rest)

    monkeypatch.setattr(SoftLabelStore, "write", stopped)
    assert make(*sam, "-num_parts", "2") == 130
    assert capsys.readouterr().err.endswith("nnunet_kd: stopped; add --continue to go on\n")
    monkeypatch.setattr(SoftLabelStore, "write", write)
    assert make(*sam, "-num_parts", "2") == 1
    assert "has 1 of 3 cases already: compute the others with --continue" in capsys.readouterr().err
    assert make(*sam, "--continue") == 0
    whole = files_of(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_whole")
    assert files_of(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_sam") == whole

    folder = workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_sam"
    damaged = next(iter(sorted(folder.glob("*.b2nd"))))
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert make(*sam, "--continue") == 0
    assert files_of(folder) == whole


def test_another_checkpoint_or_prompt_is_refused_in_the_same_folder(workspace, sam, capsys):
    assert make(*sam) == 0
    torch.manual_seed(1)
    torch.save(tiny_sam().state_dict(), workspace.root / "sam.pth")
    assert make(*sam, "--continue") == 1
    assert "was created with checkpoint_sha256 =" in capsys.readouterr().err
    torch.manual_seed(0)
    torch.save(tiny_sam().state_dict(), workspace.root / "sam.pth")
    assert make(*sam, "--continue", "--prompt", "points") == 1
    assert 'was created with prompt = "box", not "points"' in capsys.readouterr().err
    assert make(*sam, "--prompt", "points", "--name", "points") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sam", "tiny"), "--sam needs its weights: --checkpoint FILE"),
        (("--sam", "tiny", "--checkpoint", "nowhere.pth"), "there is no checkpoint nowhere.pth"),
        (("--sam", "vit_z", "--checkpoint", "nowhere.pth"), "segment_anything has no model 'vit_z'"),
        (("SAM", "--channels", "7"), "there is no channel 7: the images have 3"),
        (("SAM", "--prompt", "circle"), "the prompt must be one of box, points"),
        (("--teacher", "-f", "every"), "a fold is a number or all, got 'every'"),
        (("SAM", "-f", "0"), "-f and --disable_tta belong to --teacher"),
        (("SAM", "-part_id", "1"), "-part_id must be from 0 to 0, got 1"),
        (("SAM", "-c", "3d_lowres"), "has no configuration 3d_lowres, only 2d, 3d_fullres"),
        (("SAM", "-p", "other"), "there are no plans"),
        (("SAM", "--name", "a/b"), "the name of soft labels must consist of letters"),
        (
            ("--teacher", "--checkpoint", "x"),
            "--checkpoint, --channels, --prompt, --margin and --normalisation belong to --sam",
        ),
        (
            ("--teacher", "--margin", "3"),
            "--checkpoint, --channels, --prompt, --margin and --normalisation belong to --sam",
        ),
        (("--teacher",), "has fold_0, but not fold_1. Train it: nnUNetv2_train"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(workspace, sam, capsys, words, message):
    words = [*sam, *words[1:]] if words[0] == "SAM" else words
    assert make(*words) == 1
    assert message in capsys.readouterr().err
    assert not list(workspace.preprocessed.glob("*_soft_*"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sam_walks_along_the_largest_voxels_and_knows_the_body(workspace, sam, monkeypatch, axis):
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0 if number == axis else 1.0 for number in range(3)]
    (workspace.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    data = workspace.preprocessed / "nnUNetPlans_3d_fullres"
    for path in data.glob("*_seg.b2nd"):
        writable(path)[0, :2, 3:] = -1  # nnU-Net marks voxels outside the body with -1; mark some inside too
    asked = {}

    def logits(self, images, structures, body, axis):
        asked[len(asked)] = body, axis
        return np.zeros(structures.shape, np.float32)

    monkeypatch.setattr(SamTeacher, "logits", logits)
    assert make(*sam) == 0
    dataset = nnUNetDatasetBlosc2(str(data))
    outside = 0
    for case, (body, along) in zip(dataset.identifiers, asked.values(), strict=True):
        segmentation = np.asarray(dataset.load_case(case)[1][0])
        assert along == axis
        np.testing.assert_array_equal(body, segmentation != -1)
        outside += int((~body).sum())
    assert outside > 0


def test_soft_labels_of_a_cascade_are_sams_only(workspace, sam, capsys):
    plans = workspace.plans("nnUNetPlans")
    variants.use_cascade(workspace, plans, "nnUNetTrainerSAMKD")
    (workspace.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert make("-c", "3d_cascade_fullres", "--teacher", "-f", "0") == 1
    error = capsys.readouterr().err
    assert "3d_cascade_fullres takes the segmentation of the previous stage as input" in error
    assert "whose preprocessed cases are the same, can: give -c 3d_fullres" in error
    assert make("-c", "3d_cascade_fullres", *sam) == 0


@pytest.mark.parametrize("part", ["images", "labels"])
def test_soft_labels_of_other_images_or_labels_are_made_again(workspace, sam, capsys, part):
    assert make(*sam) == 0
    folder = workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_sam"
    before = files_of(folder)
    case = json.loads((folder / "manifest.json").read_text())["cases"][0]
    data = workspace.preprocessed / "nnUNetPlans_3d_fullres"
    make_own(data / f"{case}.pkl")
    os.utime(data / f"{case}.pkl", (2e9, 2e9))
    array = writable(data / (f"{case}_seg.b2nd" if part == "labels" else f"{case}.b2nd"))
    array[:] = 0 if part == "labels" else np.flip(array[:], -1).copy()
    capsys.readouterr()
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerSAMKD", "-f", "all"]) == 1
    assert f"{case}.b2nd: the file is older than the preprocessed case, whose {part} have" in capsys.readouterr().out
    assert make(*sam, "--continue") == 0
    after = files_of(folder)
    assert {name for name in after if after[name] != before[name]} == {f"{case}.b2nd", f"{case}.json"}
    assert (SoftLabelStore(folder).open(case)[1:] == ABSENT).all() == (part == "labels")


def test_embeddings_of_other_images_are_made_again(workspace, sam):
    words = ("-c", "2d", "--embeddings", *sam)
    assert make(*words) == 0
    folder = workspace.preprocessed / "nnUNetPlans_2d_embeddings_sam"
    before = files_of(folder)
    image = workspace.preprocessed / "nnUNetPlans_2d" / "head_000.b2nd"
    array = writable(image)
    array[:] = np.flip(array[:], -1).copy()
    os.utime(image, (2e9, 2e9))
    assert make(*words, "--continue") == 0
    after = files_of(folder)
    assert {name for name in after if after[name] != before[name]} == {"head_000.b2nd", "head_000.json"}


def test_logits_of_an_nnunet_teacher(workspace, capsys):
    """They are those of nnU-Net's own predictor on the preprocessed case."""
    assert make("--teacher", "-f", "0") == 0
    store = SoftLabelStore(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_nnunet")
    assert store.manifest["source"]["folds"] == [0] and not store.manifest["source"]["out_of_fold"]
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(workspace.teacher), (0,))
    dataset = nnUNetDatasetBlosc2(str(workspace.preprocessed / "nnUNetPlans_3d_fullres"))
    for case in dataset.identifiers[:2]:
        images = torch.from_numpy(np.asarray(dataset.load_case(case)[0][:]))
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        expected = predictor.predict_sliding_window_return_logits(images).float().numpy()
        np.testing.assert_allclose(store.open(case)[:], expected, rtol=2e-3, atol=2e-3)


def test_each_case_is_predicted_by_the_fold_that_has_not_seen_it(workspace, capsys, monkeypatch):
    for fold in range(1, 5):
        shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / f"fold_{fold}")
        path = workspace.teacher / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        content["network_weights"] = {k: v * (1 + 0.1 * fold) for k, v in content["network_weights"].items()}
        torch.save(content, path)
    assert make("--teacher", "--disable_tta") == 0
    store = SoftLabelStore(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_nnunet")
    assert store.manifest["source"]["folds"] == [0, 1, 2, 3, 4] and store.manifest["source"]["out_of_fold"]
    assert make("--teacher", "--disable_tta", "-f", "2", "--name", "two") == 0
    two = SoftLabelStore(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_two")
    splits = json.loads((workspace.preprocessed / "splits_final.json").read_text())
    for case in store.manifest["cases"]:
        same = np.array_equal(store.open(case)[:], two.open(case)[:])
        assert same == (case in splits[2]["val"]), case
    assert "LEAKAGE" in store.leakage(0) and two.leakage(2) is None


def test_the_teacher_of_fold_all_predicts_all_cases(workspace, capsys):
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_all")
    assert make("--teacher", "--disable_tta", "-f", "all") == 0
    store = SoftLabelStore(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_nnunet")
    assert store.arguments == "--teacher -f all --disable_tta --name nnunet"
    assert store.leakage("all") is None and "(fold all)" in store.leakage(0)
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerSAMKD", "-f", "all"]) == 0
    store.path("head_000").unlink()
    capsys.readouterr()
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerSAMKD", "-f", "all"]) == 1
    command = capsys.readouterr().out.partition("Make it: nnunet_kd ")[2].splitlines()[0]
    assert main([*command.split(), "-device", "cpu"]) == 0
    assert main(["doctor", "-d", "598", "-tr", "nnUNetTrainerSAMKD", "-f", "all"]) == 0


@pytest.mark.slow
def test_stock_commands_train_on_sams_soft_labels_and_predict(workspace, sam):
    assert make(*sam) == 0
    workspace.plans("short", training=SHORT, student={"source_plans": "nnUNetPlans"})
    words = ("598", "3d_fullres", "0", "-tr", "nnUNetTrainerSAMKD", "-p", "short", "-device", "cpu")
    workspace.command("nnUNetv2_train", *words)
    folder = workspace.results / "nnUNetTrainerSAMKD__short__3d_fullres"
    log = next(iter((folder / "fold_0").glob("training_log*"))).read_text()
    assert "distilling soft_labels: weight 0.5, LogitsKDLoss(temperature=3, rescale=False)" in log
    shutil.rmtree(workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_sam")
    images, out = str(workspace.raw / "imagesTs"), workspace.root / "out"
    options = ("-d", "598", "-c", "3d_fullres", "-f", "0", "-tr", "nnUNetTrainerSAMKD", "-p", "short", "-device", "cpu")
    workspace.command("nnUNetv2_predict", "-i", images, "-o", str(out), *options, "-npp", "1", "-nps", "1")
    assert len(list(out.glob("*.nii.gz"))) == 1
