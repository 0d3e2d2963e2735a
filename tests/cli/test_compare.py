import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_kd.cli import main
from nnunet_kd.evaluation.cost import Cost
from nnunet_kd.evaluation.measure import Measured
from nnunet_kd.nnunet.settings import with_leakage
from nnunet_kd.storage.integrity import file_digest
from nnunet_kd.study.commands import Commands
from nnunet_kd.study.study import Study
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import DATASET, FOLDERS, SHORT, make_trainer, note_validated, stop_within
from tests.locks import held

MEASURED = Measured(Cost(1, 2, 3), 8.0, 0.5, 100, "CPU", 1)
TINY = {**SHORT, "num_epochs": 1, "num_iterations_per_epoch": 1}


def compare(workspace, *words):
    return main(["compare", "-d", "598", "-o", str(workspace.root / "study"), "-device", "cpu", "-np", "1", *words])


@pytest.mark.slow
def test_a_stopped_study_resumes_and_reports(workspace, capsys, monkeypatch, forked_commands):
    """Of four methods one fails; the study stops before the last one, resumes to the end, and is written again.

    The teacher is a best checkpoint in a folder that does not have a name of nnU-Net's.
    """
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    folder = workspace.teacher.rename(workspace.root / "heads")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    teacher = {"folder": str(folder), "checkpoint": "checkpoint_best.pth"}
    workspace.plans("tiny", training=TINY, teacher=teacher, method={})
    rows = workspace.root / "rows.json"
    both = {"both": {"trainer": "KD", "method": {"terms": [{"name": "logits"}, {"name": "cwd"}]}}}
    rows.write_text(json.dumps({"wrong": {"trainer": "DCD", "method": {"weight": -1}}, **both}))
    words = ("-p", "tiny", "-m", "NoKD", "LogitsKD", "--rows", str(rows))
    run = Commands.run

    def stopped(self, log, *command, epochs=None):
        if "both" in log:
            raise KeyboardInterrupt
        run(self, log, *command, epochs=epochs)

    monkeypatch.setattr(Commands, "run", stopped)
    assert compare(workspace, *words) == 130
    captured = capsys.readouterr()
    failed = "wrong (fold 0, plans tiny_wrong) failed: nnUNetv2_train failed (nnunet_kd.method: weight must be"
    assert failed in captured.out
    assert captured.err.endswith("nnunet_kd: stopped; give the same command to go on\n")
    study = workspace.root / "study"
    assert not (study / "report.md").exists()

    monkeypatch.setattr(Commands, "run", run)
    assert compare(workspace, *words) == 1  # one method failed
    printed = capsys.readouterr().out
    assert "1 of 4: NoKD (fold 0, plans tiny): done already" in printed
    report = (study / "report.md").read_text()
    assert "**wrong (fold 0, plans tiny_wrong) failed" in report
    assert 'both: nnUNetTrainerKD with {"method": {"terms": [{"name": "logits"}' in report
    for method in ("teacher", "NoKD", "LogitsKD", "both"):
        assert f"| {method} " in report
    costs = [
        line.split("|")[2:] for line in report.partition("## Cost")[2].partition("##")[0].splitlines() if "|" in line
    ]
    assert len(costs) == 4 and costs[2] != costs[3]  # the students share one network, the teacher has another
    assert "| NoKD, LogitsKD, both " in report
    assert "Too few cases for a test: of 2, Wilcoxon's cannot give a p below 0.5000" in report
    assert "gap closed" in report and "GFLOPs per case" in report and "LEAKAGE" not in report
    methods = {row["method"] for row in json.loads((study / "metrics.json").read_text())}
    assert methods == {"teacher", "NoKD", "LogitsKD", "both"}
    page = (study / "report.html").read_text()
    assert page.count("<img ") == 2 * 5 and page.count("<svg ") == 5  # two cases, each with the reference and 4 methods
    assert "LogitsKD differs from NoKD by" in page.split("<svg")[0] or "LogitsKD closes" in page.split("<svg")[0]

    rows.write_text(json.dumps({"NoKD": {"trainer": "NoKD"}, "LogitsKD": {"trainer": "LogitsKD"}, **both}))
    assert compare(workspace, "-p", "tiny", "--rows", str(rows)) == 0  # the same rows, all from a file
    again = (study / "report.md").read_text()
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert [line for line in again.splitlines() if line.startswith("|")] == tables

    workspace.plans("tiny", training={**TINY, "num_epochs": 2}, teacher=teacher, method={})
    capsys.readouterr()
    assert compare(workspace, "-p", "tiny", "--rows", str(rows)) == 1
    assert (
        "was trained with other settings than NoKD has now: num_epochs 1, now 2. Remove it, or"
        in capsys.readouterr().err
    )
    assert (study / "report.md").read_text() == again

    # A default of the package has changed since the training ran.
    workspace.plans("tiny", training=TINY, teacher=teacher, method={})
    monkeypatch.setattr("nnunet_kd.training.preparation.build_terms", lambda *_: [])
    assert compare(workspace, "-p", "tiny", "--rows", str(rows)) == 1
    error = capsys.readouterr().err
    assert "settings than LogitsKD has now: teachers [{'trainer': 'nnUNetTrainer', 'folds': 'same'," in error
    assert "; terms ['logits: weight 0.3, " in error and "'], now []. Remove" in error


class Trainings:
    """A fake of nnU-Net's commands, whose n-th model misses the first n voxels of every case's first label."""

    def __init__(self, workspace):
        self.workspace = workspace
        self.models = []  # (results folder, fold)

    def run(self, _commands, _log, program, *words, epochs=None):
        option = dict(itertools.pairwise(words))
        if program == "nnUNetv2_train":
            folder = self.workspace.results / f"{option['-tr']}__{option['-p']}__{words[1]}"
            fold, segmentations = words[2], folder / f"fold_{words[2]}" / "validation"
            segmentations.mkdir(parents=True)
            plans = json.loads((self.workspace.preprocessed / f"{option['-p']}.json").read_text())
            (folder / "plans.json").write_text(json.dumps(with_leakage(plans, {"1": "LEAKAGE: it has seen fold 1"})))
            shutil.copy(self.workspace.preprocessed / "dataset.json", folder)
            content = {"network_weights": {}, "trainer_name": option["-tr"], "logging": {"train_losses": [1.0]}}
            torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
        else:
            assert program == "nnUNetv2_predict_from_modelfolder" and option["-m"] == str(self.workspace.teacher)
            folder, fold = self.workspace.teacher, option["-f"]
            segmentations = self.workspace.root / option["-o"]
        self.models.append((folder.name, fold))
        for case in json.loads((self.workspace.preprocessed / "splits_final.json").read_text())[int(fold)]["val"]:
            image = sitk.ReadImage(str(self.workspace.preprocessed / "gt_segmentations" / f"{case}.nii.gz"))
            voxels = sitk.GetArrayFromImage(image)
            voxels.flat[(voxels.flat == 1).nonzero()[0][: len(self.models)]] = 0
            found = sitk.GetImageFromArray(voxels)
            found.CopyInformation(image)
            sitk.WriteImage(found, str(segmentations / f"{case}.nii.gz"))
        if program == "nnUNetv2_train":
            (segmentations / "summary.json").write_text('{"metric_per_case": []}')


@pytest.mark.slow
def test_every_row_has_its_own_fold_and_seed(workspace, monkeypatch):
    shutil.copytree(workspace.teacher / "fold_0", workspace.teacher / "fold_1")
    workspace.plans("tiny", training=TINY, teacher={"plans": "nnUNetPlans"})
    trainings = Trainings(workspace)
    monkeypatch.setattr(Commands, "run", lambda *words, **options: trainings.run(*words, **options))
    monkeypatch.setattr("nnunet_kd.evaluation.measure.measure_in_turn", lambda models, *_: [MEASURED for _ in models])
    words = ("-p", "tiny", "-m", "nnUNetTrainerNoKD", "--ablation", "dcd", "-f", "0", "1", "--seeds", "0", "3")
    assert compare(workspace, *words) == 0

    ablation = ("lll", "hhh", "detail", "all", "without-idwt", "energy")
    plans = {
        "NoKD": "nnUNetTrainerNoKD__tiny",
        **{f"DCD {row}": f"nnUNetTrainerDCD__tiny_dcd-{row}" for row in ablation},
    }
    expected = {}
    for fold, cases in enumerate(json.loads((workspace.preprocessed / "splits_final.json").read_text())[:2]):
        models = {(method, seed): f"{name}_seed{seed}__3d_fullres" for method, name in plans.items() for seed in (0, 3)}
        models["teacher", None] = workspace.teacher.name
        for case in cases["val"]:
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(workspace.raw / "labelsTr" / f"{case}.nii.gz")))
            size = int((labels == 1).sum())
            for (method, seed), folder in models.items():
                left = size - 1 - trainings.models.index((folder, str(fold)))
                expected[method, seed, case] = 2 * left / (size + left)
    assert len(trainings.models) == len(set(trainings.models)) == 2 * (1 + 2 * 7)
    study = workspace.root / "study"
    rows = json.loads((study / "metrics.json").read_text())
    structure = rows[0]["structure"]
    found = {(row["method"], row["seed"], row["case"]): row["dice"] for row in rows if row["structure"] == structure}
    assert found == pytest.approx(expected, abs=1e-9)
    assert set(Counter((row["method"], row["seed"], row["case"]) for row in rows).values()) == {2}
    report = (study / "report.md").read_text()
    assert report.count("LEAKAGE: it has seen fold 1") == 1 and "seed 0, 3" in report


def list_files(workspace, monkeypatch):
    """Move and rename images and labels, so that only ``dataset.json`` says where they are."""
    monkeypatch.setenv("HOSPITAL", str(workspace.root / "hospital"))
    listed = {}
    for path in sorted((workspace.raw / "labelsTr").iterdir()):
        case = path.name.removesuffix(".nii.gz")
        folder = workspace.root / "hospital" / case
        folder.mkdir(parents=True)
        path.rename(folder / "mask.nii.gz")
        for image in (workspace.raw / "imagesTr").glob(f"{case}_*"):
            image.rename(folder / f"t{image.name[-8]}.nii.gz")
        images = [f"../../hospital/{case}/t{channel}.nii.gz" for channel in range(3)]
        listed[case] = {"images": images, "label": f"$HOSPITAL/{case}/mask.nii.gz"}
    for folder in (workspace.raw, workspace.preprocessed):
        (folder / "dataset.json").write_text(json.dumps({**workspace.dataset_json, "dataset": listed}))


def test_files_that_dataset_json_lists(workspace, monkeypatch):
    """A study is the same wherever ``dataset.json`` says that images and labels are."""
    monkeypatch.setattr("nnunet_kd.evaluation.measure.measure_in_turn", lambda models, *_: [MEASURED for _ in models])
    workspace.plans("tiny", training=TINY, teacher={"plans": "nnUNetPlans"})
    found = []
    for change in (lambda: None, lambda: list_files(workspace, monkeypatch)):
        trainings = Trainings(workspace)
        monkeypatch.setattr(Commands, "run", lambda *words, to=trainings, **options: to.run(*words, **options))
        change()
        assert compare(workspace, "-p", "tiny", "-m", "NoKD", "LogitsKD") == 0
        study = workspace.root / "study"
        found.append(((study / "metrics.csv").read_text(), (study / "report.html").read_text().count("<img ")))
        assert "## Slices" not in (study / "report.md").read_text() and not (study / "slices.csv").exists()  # 3-D
        images = study / "images" / "fold_0"
        cases = json.loads((workspace.preprocessed / "splits_final.json").read_text())[0]["val"]
        names = [f"{case}_000{channel}.nii.gz" for case in sorted(cases) for channel in range(3)]
        assert sorted(path.name for path in images.iterdir()) == names
        for folder in (study, *workspace.results.glob("nnUNetTrainer[!_]*")):
            shutil.rmtree(folder)
    assert found[0] == found[1]


def test_slices_of_2d_networks_are_scored_beside_the_volumes(workspace, monkeypatch):
    monkeypatch.setattr("nnunet_kd.evaluation.measure.measure_in_turn", lambda models, *_: [MEASURED for _ in models])
    monkeypatch.setattr("nnunet_kd.study.comparison.study_teachers", lambda *_, **__: {})
    workspace.plans("tiny", training=TINY)
    trainings = Trainings(workspace)
    monkeypatch.setattr(Commands, "run", lambda *words, **options: trainings.run(*words, **options))
    assert compare(workspace, "-c", "2d", "-p", "tiny", "-m", "NoKD") == 0
    study = workspace.root / "study"
    report = (study / "report.md").read_text()
    for section in (
        "mean over classes, Dice (%)",
        "## All cases together",
        "overall accuracy, pooled (%)",
        "## Slices",
    ):
        assert section in report
    rows = [json.loads((study / f"{name}.json").read_text()) for name in ("metrics", "slices")]
    counts = [sum(row["true_positives"] for row in one) for one in rows]
    assert counts[0] == counts[1] > 0 and len(rows[1]) > 5 * len(rows[0])


def test_a_reference_of_several_values_is_refused_before_training(workspace, capsys):
    """nnU-Net's reader returns only the first volume of a series, and the study would evaluate that after training."""
    workspace.plans("tiny", training=SHORT)
    case = json.loads((workspace.preprocessed / "splits_final.json").read_text())[0]["val"][0]
    path = workspace.raw / "labelsTr" / f"{case}.nii.gz"
    volume = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    path.unlink()  # the file is a link shared with other tests
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([volume, volume]), isVector=False), str(path))
    assert compare(workspace, "-p", "tiny", "-m", "NoKD") == 1
    assert f"{path} has 2 values per voxel" in capsys.readouterr().err
    assert not (workspace.root / "study" / "logs").exists()


def test_only_one_comparison_runs_in_a_folder(workspace, capsys):
    """A second one would call an unfinished training failed and leave it out of the report."""
    workspace.plans("tiny", training=SHORT)
    study = workspace.root / "study"
    study.mkdir()
    with held(study / "compare.lock") as other:
        assert compare(workspace, "-p", "tiny", "-m", "NoKD") == 1
    error = capsys.readouterr().err
    assert f"another nnunet_kd compare is running in {study} (process {other}): run this command again when" in error
    assert [path.name for path in study.iterdir()] == ["compare.lock"]


def test_a_training_in_another_process_does_not_count_as_failed(workspace, monkeypatch, capsys):
    """It can start before the study, or while the study trains the previous row."""
    workspace.plans("tiny", training=TINY, teacher={"plans": "nnUNetPlans"})
    trainings = Trainings(workspace)
    monkeypatch.setattr(Commands, "run", lambda *words, **options: trainings.run(*words, **options))
    fold = workspace.results / "nnUNetTrainerLogitsKD__tiny__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    torn = fold / "checkpoint_latest.pth"
    torn.write_bytes(b"half of it")
    with held(fold / "training.lock") as other:
        message = f"another process is training in {fold} (process {other}): run this command again when it has ended;"
        assert compare(workspace, "-p", "tiny", "-m", "NoKD", "LogitsKD") == 1
        assert message in capsys.readouterr().err
        assert trainings.models == [] and not (workspace.root / "study").exists()
        with monkeypatch.context() as late:
            late.setattr("nnunet_kd.study.comparison.check_results", lambda *_: None)
            assert compare(workspace, "-p", "tiny", "-m", "NoKD", "LogitsKD") == 1
        captured = capsys.readouterr()
        assert message in captured.err and "failed" not in captured.out
        assert trainings.models == [("nnUNetTrainerNoKD__tiny__3d_fullres", "0")]
    assert torn.is_file() and not (workspace.root / "study" / "report.md").exists()


@pytest.mark.slow
def test_colour_pictures(pictures, monkeypatch, forked_commands):
    """Each case is one file with three channels."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    pictures.plans("tiny", training=TINY, student={"source_plans": "nnUNetPlans"})
    assert compare(pictures, "-d", "597", "-c", "2d", "-p", "tiny", "-m", "NoKD") == 0
    assert "| NoKD " in (pictures.root / "study" / "report.md").read_text()


def test_a_training_that_began_with_other_settings_is_refused(workspace, capsys):
    plans = workspace.plans("tiny", training=SHORT, teacher={"plans": "nnUNetPlans"}, method={"weight": 0.1})
    trainer = make_trainer(nnUNetTrainerLogitsKD, plans, workspace)
    stop_within(trainer, 3)
    workspace.plans("tiny", training=SHORT, teacher={"plans": "nnUNetPlans"}, method={"weight": 0.2})
    assert compare(workspace, "-p", "tiny", "-m", "NoKD", "LogitsKD") == 1
    error = capsys.readouterr().err
    assert "was begun with other settings than LogitsKD has now: terms ['logits: weight 0.1, " in error
    assert not (workspace.root / "study").exists()


def test_students_of_a_retrained_teacher_are_refused(workspace, capsys):
    """The new teacher has the name of the old one, so one table would mix students of both."""
    plans = workspace.plans("tiny", training=SHORT, teacher={"plans": "nnUNetPlans"})
    for kind in (nnUNetTrainerLogitsKD, nnUNetTrainerNoKD):
        stop_within(make_trainer(kind, plans, workspace), 3)
    path = workspace.teacher / "fold_0" / "checkpoint_final.pth"
    before = file_digest(path)[:12]
    content = torch.load(path, weights_only=False)
    next(iter(content["network_weights"].values())).mul_(1.01)
    torch.save(content, path)
    assert compare(workspace, "-p", "tiny", "-m", "NoKD", "LogitsKD") == 1
    error = capsys.readouterr().err
    known, now = f"teacher_checkpoints ['{before}']", f"['{file_digest(path)[:12]}']"
    assert f"was begun with other settings than LogitsKD has now: {known}, now {now}. Remove it, or" in error
    assert not (workspace.root / "study").exists()


def test_a_case_of_two_folds_is_refused(workspace, capsys):
    """The report would have its values from only one of the folds."""
    path = workspace.preprocessed / "splits_final.json"
    splits = json.loads(path.read_text())
    case = splits[0]["val"][0]
    splits[1]["val"].append(case)
    path.write_text(json.dumps(splits))
    workspace.plans("tiny", training=SHORT)
    assert compare(workspace, "-p", "tiny", "-m", "NoKD", "-f", "0", "1") == 1
    assert f"{case} is a validation case of folds 0 and 1: compare one fold at a time" in capsys.readouterr().err


def test_folds_that_have_changed_are_refused(workspace, capsys):
    """Models of the old folds, teachers included, have seen a new validation case; a missing case does no harm."""
    path = workspace.preprocessed / "splits_final.json"
    splits = json.loads(path.read_text())
    note_validated(workspace.teacher / "fold_0", splits[0]["val"])
    splits[0]["train"].append(splits[0]["val"].pop())
    path.write_text(json.dumps(splits))
    study = Study(DATASET, "3d_fullres", {}, [workspace.root / name for name in FOLDERS], workspace.root, "cpu")
    study.check_validated(workspace.teacher, 0)
    case = splits[0]["train"].pop(0)
    splits[0]["val"].append(case)
    path.write_text(json.dumps(splits))
    workspace.plans("tiny", training=SHORT, teacher={"plans": "nnUNetPlans"})
    assert compare(workspace, "-p", "tiny", "-m", "NoKD") == 1
    error = capsys.readouterr().err
    seen = f"1 of 2 validation cases of fold 0 ({case}): restore"
    assert f"{workspace.teacher} was trained without holding out {seen}" in error
    assert not (workspace.root / "study" / "logs").exists()


def test_a_cascade_is_refused(workspace, capsys):
    plans = workspace.plans("nnUNetPlans")
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"] |= {"3d_lowres": {"inherits_from": "3d_fullres"}, "3d_cascade_fullres": cascade}
    (workspace.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert compare(workspace, "-m", "NoKD", "-c", "3d_cascade_fullres") == 1
    assert "3d_cascade_fullres needs segmentations by 3d_lowres: cascades are not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "NoKD", "Nothing"], "nnU-Net finds no trainer nnUNetTrainerNothing for the method Nothing"),
        ([], "nothing to compare: name methods with -m, or rows with --rows"),
        (["-m", "NoKD", "NoKD"], "-m has an entry twice: NoKD NoKD"),
        (["-m", "NoKD", "-p", "other"], "there are no plans"),
        (["-m", "NoKD", "-c", "3d_lowres"], "has no configuration 3d_lowres, only 2d, 3d_fullres"),
        (["-m", "NoKD", "DCD", "-f", "3"], "has fold_0, but not fold_3. Train it: nnUNetv2_train"),
        (["-m", "NoKD", "-f", "0", "7"], "has 5 folds, but no fold 7"),
        (["-m", "NoKD", "SAMKD"], "there are no soft labels in"),
        (["-m", "NoKD", "BrainSegDMIF", "-c", "2d"], "would train different networks (PlainConvUNet, ["),
        (["-m", "NoKD", "--ablation", "x"], "there is no ablation 'x'"),
        (["-m", "NoKD", "--rows", "nothing.json"], "cannot read nothing.json: there is no such file"),
        (["-m", "NoKD", "--tolerance", "0"], "--tolerance above 0"),
        (["-m", "NoKD", "-f", "-1"], "-f has a negative number: -1"),
        (["-m", "NoKD", "--seeds", "0", "-2"], "--seeds has a negative number: 0 -2"),
    ],
)
def test_wrong_arguments(workspace, capsys, words, message):
    assert compare(workspace, *words) == 1
    assert message in capsys.readouterr().err
    assert not (workspace.root / "study").exists()
