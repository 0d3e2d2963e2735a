"""The life of a student by stock commands: begun, killed, resumed, validated, and used on both devices."""

import json

import numpy as np
import SimpleITK
import torch

from tests.gpu.commands import environment, kill_when_there, run

NAME, TRAINER = "life", "nnUNetTrainerKD"


def test_of_a_student(place, figures, workspace):
    """KD from pruned weights, with a term that needs the teacher, is killed and resumed; both devices then agree."""
    epochs = place.size(6, 2)
    schedule = {"num_epochs": epochs, "num_iterations_per_epoch": place.size(40, 2), "save_every": 1}
    training = {**schedule, "num_val_iterations_per_epoch": 1, "initial_weights": "pruned", "initial_lr": 0.02}
    method = {"add": [{"name": "logits"}]}
    workspace.plans(NAME, training=training, method=method, teacher={"plans": "nnUNetPlans"})
    fold = workspace.results / f"{TRAINER}__{NAME}__3d_fullres" / "fold_0"
    variables = environment(place, workspace)
    uncompiled = {**variables, "nnUNet_compile": "f"}  # which would take longer than to predict one image

    train = ["nnUNetv2_train", "598", "3d_fullres", "0", "-tr", TRAINER, "-p", NAME, "-device", place.device.type]
    kill_when_there(place, train, variables, fold / "checkpoint_latest.pth", workspace.root / "killed.log")
    assert not (fold / "checkpoint_final.pth").exists()
    before = torch.load(fold / "checkpoint_latest.pth", weights_only=False)
    figures["epochs before the kill"] = before["current_epoch"]

    run(place, [*train, "--c"], variables)
    after = torch.load(fold / "checkpoint_final.pth", weights_only=False)["logging"]
    figures["epochs"] = len(after["train_losses"])
    figures["first loss"], figures["last loss"] = (float(after["train_losses"][i]) for i in (0, -1))
    figures["skipped steps"] = float(np.sum(after["skipped_steps"]))
    assert (
        figures["epochs"] == epochs and np.isfinite(after["train_losses"]).all() and np.isfinite(after["logits"]).all()
    )
    kept = before["current_epoch"]
    assert after["train_losses"][:kept] == before["logging"]["train_losses"]

    summary = json.loads((fold / "validation" / "summary.json").read_text())
    figures["validated cases"] = len(summary["metric_per_case"])
    assert figures["validated cases"] == len(list((fold / "validation").glob("*.nii.gz"))) > 0

    predicted = {}
    for name, device in (("ours", place.device.type), ("reference", "cpu")):
        out = workspace.root / name
        images = str(workspace.raw / "imagesTr")
        model = ["-d", "598", "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-p", NAME]
        run(place, ["nnUNetv2_predict", *model, "-i", images, "-o", str(out), "-device", device], uncompiled)
        predicted[name] = np.concatenate([read(path) for path in sorted(out.glob("*.nii.gz"))])
    figures["foreground voxels"] = int((predicted["reference"] > 0).sum())
    figures["Dice of both devices"] = lowest_dice(predicted["ours"], predicted["reference"])
    assert figures["foreground voxels"] > 0 and figures["Dice of both devices"] > 0.99


def read(path):
    """All voxels of a segmentation in a row."""
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).ravel()


def lowest_dice(ours, reference):
    """The lowest Dice of the labels that are there."""
    scores = []
    for label in np.unique(reference[reference > 0]):
        a, b = ours == label, reference == label
        scores.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return min(scores, default=0.0)
