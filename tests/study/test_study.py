import json
import os
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.evaluation.metrics import METRICS
from nnunet_kd.evaluation.pictures import TILE
from nnunet_kd.evaluation.rows import Row
from nnunet_kd.nnunet.settings import read_settings
from nnunet_kd.storage.writing import DiskFullError
from nnunet_kd.study.ablations import rows_of_ablation
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.comparison import study_teachers
from nnunet_kd.study.costs import study_costs
from nnunet_kd.study.pictures import draw_cases
from nnunet_kd.study.predictions import predict
from nnunet_kd.study.runs import list_runs, rows_of_methods
from nnunet_kd.study.study import Study
from nnunet_kd.study.validation import references, segmentations
from tests.conftest import DATASET, FOLDERS, SHORT
from tests.full_disk import PAGE, leave


def study_of(workspace, plans):
    folders = tuple(workspace.root / name for name in FOLDERS)
    return Study(DATASET, "3d_fullres", plans, folders, workspace.root / "study", "cpu")


def test_plans_of_a_run_keep_the_teacher_and_change_seed_and_numbers(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={"levels": 2})
    study = study_of(workspace, plans)
    run = list_runs("nnUNetPlans", rows_of_ablation("dcd", []), [0], [5])[4]
    study.write_plans([run])
    written = json.loads((workspace.preprocessed / "nnUNetPlans_dcd-without-idwt_seed5.json").read_text())
    settings = read_settings(written)
    assert written["plans_name"] == "nnUNetPlans_dcd-without-idwt_seed5"
    assert settings.training.seed == 5 and settings.training.num_epochs == 2
    assert settings.teachers[0].plans == "nnUNetPlans"
    assert settings.method == {"levels": 2, "reconstruct": False}
    assert plans["nnunet_kd"]["method"] == {"levels": 2}  # the given plans are unchanged
    study.write_plans([run])
    other = study_of(workspace, workspace.plans("nnUNetPlans", training=SHORT))
    with pytest.raises(FileExistsError, match="exists with other settings"):
        other.write_plans([run])


def test_students_plans_keep_their_own_source(workspace):
    plans = workspace.plans("small", student={"source_plans": "nnUNetPlans"})
    (run,) = list_runs("small", rows_of_methods(["DCD"]), [0], [1])
    assert read_settings(study_of(workspace, plans).plans_of(run)).teachers[0].plans == "nnUNetPlans"


def test_plans_that_are_their_own_source_are_reduced_under_every_name(workspace):
    plans = workspace.plans("nnUNetPlans", student={"source_plans": "nnUNetPlans", "reduction": 2})
    study = study_of(workspace, plans)
    widths = []
    for run in list_runs("nnUNetPlans", rows_of_methods(["NoKD"]), [0], [None, 1]):
        network = study.prepared(run).student.plans["configurations"]["3d_fullres"]["architecture"]
        widths.append(network["arch_kwargs"]["features_per_stage"])
    full = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"]
    assert widths[0] == widths[1] and widths[0][-1] == full[-1] // 2
    assert plans["nnunet_kd"]["student"]["source_plans"] == "nnUNetPlans"


def test_the_schedule_is_that_of_plans_and_trainer(workspace):
    study = study_of(workspace, workspace.plans("nnUNetPlans", training=SHORT))
    study.configuration = "2d"
    runs = list_runs("nnUNetPlans", rows_of_methods(["NoKD", "", "BrainSegDMIF"]), [0], [None])
    assert [study.schedule_of(run).num_epochs for run in runs] == [2, 2, 2]
    study.plans.pop("nnunet_kd")
    assert [study.schedule_of(run).num_epochs for run in runs] == [None, None, 200]


def test_cases_and_images_of_a_fold(workspace):
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    splits = json.loads((workspace.preprocessed / "splits_final.json").read_text())
    assert study.folds.cases_of(1) == sorted(splits[1]["val"])
    images = sorted(path.name for path in study.images_of(0).iterdir())
    assert len(images) == 3 * len(splits[0]["val"]) and images[0].endswith("_0000.nii.gz")
    study.images_of(0)  # a second time
    with pytest.raises(ValueError, match="has 5 folds, but no fold 9"):
        study.folds.cases_of(9)
    (workspace.raw / "imagesTr" / images[0]).unlink()
    (study.out / "images" / "fold_0" / images[0]).unlink()
    with pytest.raises(ValueError, match=f"there is no .*{images[0]}"):
        study.images_of(0)


def test_an_empty_folder_of_cases_is_not_split(workspace):
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    study.folds.path.unlink()
    folder = next(workspace.preprocessed.glob("*3d_fullres"))
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=f"{folder} contains no case: preprocess again"):
        study.folds.write()
    assert not study.folds.path.exists()


def test_links_of_an_earlier_split_are_not_kept(workspace):
    """They remain if the folds were changed, or if the folder belongs to another study."""
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    before = [references(study, 0), study.images_of(0)]
    splits = json.loads(study.folds.path.read_text())
    splits[0]["val"] = splits[0]["val"][:1]
    study.folds.path.write_text(json.dumps(splits))
    (case,) = study.folds.cases_of(0)
    assert [references(study, 0), study.images_of(0)] == before
    assert [sorted(path.name for path in folder.iterdir()) for folder in before] == [
        [f"{case}.nii.gz"],
        [f"{case}_000{channel}.nii.gz" for channel in range(3)],
    ]


def test_costs_are_measured_once_per_network(workspace, monkeypatch):
    """Weights do not matter; another network, other cases or another device are measured again."""
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    for trainer in ("nnUNetTrainerNoKD", "nnUNetTrainerDCD"):  # both have the teacher's network
        shutil.copytree(workspace.teacher, workspace.results / f"{trainer}__nnUNetPlans__3d_fullres")
    runs = list_runs("nnUNetPlans", rows_of_methods(["", "NoKD"]), [0], [None])
    study.out.mkdir()
    begun = []

    def in_turn(models, images, device, cases):
        begun.append([model.checkpoint.parents[1].name.partition("_")[0] for model in models])
        return [Measured(Cost(len(begun), number, 3), 8.0, 0.5, 100, device, 1) for number in range(len(models))]

    monkeypatch.setattr("nnunet_kd.evaluation.measure.measure_in_turn", in_turn)
    costs = study_costs(study, runs, {}, False)
    assert costs["nnUNetTrainer"] == costs["NoKD"] and costs["NoKD"].network.parameters == 1
    path = workspace.results / "nnUNetTrainerNoKD__nnUNetPlans__3d_fullres"
    os.utime(path / "fold_0" / "checkpoint_final.pth", (1e9, 1e9))  # trained again
    more = list_runs("nnUNetPlans", rows_of_methods(["", "NoKD", "DCD"]), [0], [None])
    assert [cost.network.parameters for cost in study_costs(study, more, {}, False).values()] == [1, 1, 1]
    assert begun == [["nnUNetTrainer"]]

    plans = json.loads((path / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]
    (path / "plans.json").write_text(json.dumps(plans))
    costs = study_costs(study, more, {}, False)
    assert [cost.network.flops for cost in costs.values()] == [0, 1, 0]
    checkpoint = torch.load(path / "fold_0" / "checkpoint_final.pth", weights_only=False)
    torch.save({**checkpoint, "inference_allowed_mirroring_axes": None}, path / "fold_0" / "checkpoint_final.pth")
    study_costs(study, more, {}, False)  # with fewer mirrored copies
    study.device = "cuda"
    assert study_costs(study, more, {}, False)["DCD"].device == "cuda"
    splits = json.loads(study.folds.path.read_text())
    splits[0]["val"] = splits[0]["val"][:1]
    study.folds.path.write_text(json.dumps(splits))
    study_costs(study, more, {}, False)
    assert begun[1:] == 4 * [["nnUNetTrainer", "nnUNetTrainerNoKD"]]


def test_a_teacher_of_some_folds_is_not_the_teacher_of_the_study(workspace):
    """It would teach the other folds as well, whose cases it has seen."""
    study = study_of(workspace, workspace.plans("nnUNetPlans", teacher={"folds": [0]}))
    methods = rows_of_methods(["NoKD"])
    (files,) = study_teachers(study, list_runs("nnUNetPlans", methods, [0], [None]), needed=True).values()
    assert files.checkpoint == workspace.teacher / "fold_0" / "checkpoint_final.pth"
    assert study_teachers(study, list_runs("nnUNetPlans", methods, [0, 1], [None]), needed=True) == {}


def test_a_teacher_of_another_spacing_is_not_compared(workspace):
    """Stock commands cannot run it on the students' preprocessed cases, but students can start from it."""
    plans = json.loads((workspace.teacher / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    (workspace.teacher / "plans.json").write_text(json.dumps(plans))
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    runs = list_runs("nnUNetPlans", rows_of_methods(["KD"]), [0], [None])
    assert study_teachers(study, runs, needed=True) == {}


def test_a_picture_holds_all_channels(workspace):
    """nnU-Net stores three channels in one colour image, and the data set names all three."""
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    for path in (workspace.raw / "imagesTr").glob("*_000[12].nii.gz"):
        path.unlink()
    images = sorted(path.name for path in study.images_of(0).iterdir())
    assert images == [f"{case}_0000.nii.gz" for case in study.folds.cases_of(0)]


def test_folds_are_nnunets_and_written_completely(workspace):
    """They are written before any training, because a killed training would leave a partial file."""
    path = workspace.preprocessed / "splits_final.json"
    nnunets = path.read_text()
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    path.unlink()
    study.folds.write()
    assert json.loads(path.read_text()) == json.loads(nnunets)
    path.write_text(nnunets[:30])
    with pytest.raises(ValueError, match="cannot read .*splits_final.json, perhaps because a training was killed"):
        study.folds.write()
    assert path.read_text() == nnunets[:30]  # the user could have written it


def test_truncated_checkpoints_do_not_count(workspace, monkeypatch):
    plans = workspace.plans("nnUNetPlans", training=SHORT)
    study = study_of(workspace, plans)
    (run,) = list_runs("nnUNetPlans", rows_of_methods([""]), [0], [None])
    fold = workspace.teacher / "fold_0"
    final, latest = fold / "checkpoint_final.pth", fold / "checkpoint_latest.pth"
    assert study.is_trained(run) and study.last_checkpoint(run) == final
    shutil.copy(final, latest)
    final.write_bytes(final.read_bytes()[:-1])
    commands = []
    monkeypatch.setattr(Commands, "run", lambda self, *words, **_: commands.append(words))
    assert not study.is_trained(run) and study.last_checkpoint(run) == latest
    study.train(run)
    assert not final.exists() and latest.exists() and commands[-1][-1] == "--c"
    for path in fold.glob("checkpoint_*.pth"):
        path.write_bytes(b"")
    study.train(run)
    assert not latest.exists() and commands[-1][-1] == "cpu"


@pytest.mark.slow
def test_a_killed_prediction_resumes_from_complete_files_only(workspace, monkeypatch, forked_commands):
    """nnU-Net itself skips every case whose file exists."""
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    ran = []
    run = Commands.run
    monkeypatch.setattr(Commands, "run", lambda self, *words, **more: ran.append(words) or run(self, *words, **more))
    folder = predict(study, workspace.teacher, 0)
    files = sorted(folder.glob("*.nii.gz"))
    whole = [path.read_bytes() for path in files]
    assert len(files) == 2 and predict(study, workspace.teacher, 0) == folder and len(ran) == 1

    files[0].write_bytes(whole[0][:-50])
    kept = files[1].stat().st_mtime_ns
    predict(study, workspace.teacher, 0)
    assert [path.read_bytes() for path in files] == whole and files[1].stat().st_mtime_ns == kept and len(ran) == 2

    os.utime(workspace.teacher / "fold_0" / "checkpoint_final.pth")  # trained again
    predict(study, workspace.teacher, 0)
    assert files[1].stat().st_mtime_ns > kept and len(ran) == 3

    other = shutil.copytree(workspace.teacher, workspace.root / "elsewhere" / workspace.teacher.name)
    assert (
        predict(study, other, 0) == folder and len(ran) == 4
    )  # the predictions of the model with the same name are not reused
    predict(study, workspace.teacher, 0)

    own = workspace.teacher / "fold_0" / "validation"
    own.mkdir()
    for path in files:
        shutil.copy(path, own)
    assert predict(study, workspace.teacher, 0) == folder  # without a summary, its validation was killed
    (own / "summary.json").touch()
    assert predict(study, workspace.teacher, 0) == own
    later = (own / "summary.json").stat().st_mtime + 1  # file systems have coarse clocks
    os.utime(own / files[1].name, (later, later))  # a second validation was killed
    assert predict(study, workspace.teacher, 0) == folder and len(ran) == 5


@pytest.mark.slow
def test_a_prediction_on_a_full_disk_leaves_no_partial_files(workspace, small_disk, forked_commands):
    """SimpleITK reports no error then, and nnU-Net's command succeeds."""
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    study.out = disk = small_disk(2**20)
    study.images_of(0)  # creates links, some of which need a disk block of their own
    folder = disk / "predictions" / f"{workspace.teacher.name}_fold_0"
    folder.mkdir(parents=True)
    described = len(json.dumps(study.plans, indent=4)) + len(json.dumps(study.dataset_json, indent=4))
    refused = []
    for pages in range(described // PAGE, described // PAGE + 12):
        shutil.rmtree(disk / "predictions", ignore_errors=True)
        leave(disk, pages * PAGE)
        try:
            predict(study, workspace.teacher, 0)
            break
        except DiskFullError as error:
            refused.append(str(error))
    assert any(re.fullmatch(f"cannot write {folder}/.*nii.gz: the disk is full", text) for text in refused), refused
    leave(disk, 2**19)
    assert predict(study, workspace.teacher, 0) == folder


def test_commands_show_progress_and_keep_their_output(tmp_path, capsys):
    commands = Commands(tmp_path)
    script = "print('a: Epoch 0'); print('b: Pseudo dice 0.5'); print('noise')"
    commands.run("log", "python", "-c", script, epochs=3)
    printed = capsys.readouterr().out
    assert "    epoch 1 of 3" in printed and "Pseudo dice 0.5" in printed and "noise" not in printed.split("\n", 1)[1]
    assert "noise" in (tmp_path / "log.log").read_text()
    with pytest.raises(RuntimeError, match=r"python failed \(.*broken\); its output is in .*log.log"):
        commands.run("log", "python", "-c", "raise SystemExit('broken')")
    with pytest.raises(FileNotFoundError, match="nnUNetv2_nothing is not installed"):
        commands.run("log", "nnUNetv2_nothing")


def test_an_epoch_is_reported_when_it_begins(tmp_path, monkeypatch):
    """The report does not wait until the command's output fills a buffer."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    told = tmp_path / "told"
    commands = Commands(tmp_path)
    monkeypatch.setattr(commands, "say", lambda text: "epoch 1" in text and told.touch())
    script = (
        "import pathlib, sys, time\nprint('a: Epoch 0')\nstop = time.monotonic() + 20\n"
        "while not pathlib.Path(sys.argv[1]).exists():\n"
        "    assert time.monotonic() < stop, 'nobody heard'\n    time.sleep(0.05)"
    )
    commands.run("log", "python", "-c", script, str(told), epochs=3)


def test_pictures_of_cases_of_other_voxels_with_an_ignore_label(workspace):
    """Each picture has its own proportions, and voxels with the ignore label count as correct."""
    study = study_of(workspace, workspace.plans("nnUNetPlans"))
    study.dataset_json["labels"]["ignore"] = 3
    runs = list_runs("nnUNetPlans", rows_of_methods(["NoKD"]), [0], [None])
    folder = segmentations(study, "NoKD seed None", 0)
    folder.mkdir(parents=True)
    references(study, 0)
    reference = np.zeros((6, 8, 10), np.uint8)
    reference[0] = 3
    reference[2, 2:4, 2:5] = 1
    rows = []
    for case, dice, spacing in zip(study.folds.cases_of(0), (0.1, 0.9), ((1, 1, 5), (3, 2, 1)), strict=True):
        wanted = {
            workspace.raw / "imagesTr" / f"{case}_0000.nii.gz": np.random.default_rng(0).random(reference.shape),
            workspace.raw / "labelsTr" / f"{case}.nii.gz": reference,
            folder / f"{case}.nii.gz": np.zeros_like(reference),
        }
        for path, array in wanted.items():
            path.unlink(missing_ok=True)  # the file can be a link shared with other tests
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing)  # x, y, z
            sitk.WriteImage(image, str(path))
        rows.append(Row("NoKD", case, "lesion", dict.fromkeys(METRICS, dice)))
    shown = draw_cases(study, runs, rows, "NoKD")
    assert list(shown.cases) == [
        f"{of}: {case}" for of, case in zip(("Worst", "Best"), study.folds.cases_of(0), strict=True)
    ]
    missed = [int(shown.legend["false negative"][start : start + 2], 16) for start in (1, 3, 5)]
    for (_, predicted), (height, width, side) in zip(shown.cases.values(), ((1, 1, 10), (2, 3, 30)), strict=True):
        errors = predicted.pixels[:TILE, -TILE:, :3]  # across z, in the slice of the lesion
        assert (errors == missed).all(2).sum() == 2 * height * 3 * width * (TILE / side) ** 2
