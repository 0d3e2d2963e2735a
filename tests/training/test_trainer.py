"""Training through nnU-Net's own life cycle on a tiny data set."""

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_kd.cli import parser
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerLogitsKD import nnUNetTrainerLogitsKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from nnunet_kd.training.announcement import _duration, announce_end
from tests.conftest import SHORT, make_trainer, note_validated
from tests.training.checkpoints import NOW, checkpoint


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_results_are_a_plain_student(workspace, configuration):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace, configuration=configuration)
    trainer.run_training()

    folder = workspace.results / f"nnUNetTrainerDCD__nnUNetPlans__{configuration}"
    saved = json.loads((folder / "plans.json").read_text())
    full = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    for name, content in saved["configurations"].items():
        before = full["configurations"][name]["architecture"]["arch_kwargs"]["features_per_stage"]
        after = content["architecture"]["arch_kwargs"]["features_per_stage"]
        assert after == [max(width // 4, 8) for width in before]
    content = checkpoint(workspace, configuration=configuration)
    student = trainer.trained().student
    assert content["network_weights"].keys() == student.state_dict().keys()
    adapters = content["nnunet_kd"]["adapters"]
    assert len(adapters) == len(trainer.distiller.teacher_stages.widths)
    deeper = student.encoder.stages[1][0].convs[0].conv.weight
    assert deeper.is_contiguous() == (configuration == "2d")  # 3-D students train channels last on a CPU
    assert all(weight.is_contiguous() for weight in content["network_weights"].values())
    in_optimizer = sum(len(group["params"]) for group in content["optimizer_state"]["param_groups"])
    assert in_optimizer == len(list(student.parameters())) + len(adapters)
    for name in ("segmentation", "dcd", "train_losses"):
        assert len(content["logging"][name]) == 2 and np.isfinite(content["logging"][name]).all()


def test_the_log_ends_with_both_dices_and_what_comes_next(workspace):
    note_validated(workspace.teacher / "fold_0", ["head_001"])
    summary = workspace.teacher / "fold_0" / "validation" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "foreground_mean": {"Dice": 0.75}}))
    plans = workspace.plans("nnUNetPlans", training=SHORT, teacher={"plans": "nnUNetPlans"})
    trainer = make_trainer(nnUNetTrainerKD, plans, workspace)
    trainer.initialize()
    trainer.on_train_start()
    (log,) = Path(trainer.output_folder).glob("*.txt")
    dice = "checkpoint_final.pth; Dice of its own validation 0.750"
    assert dice in log.read_text() and "nnU-Net's own, from initial weights of the teacher's" in log.read_text()
    validation = Path(trainer.output_folder) / "validation"
    validation.mkdir()
    of_cases = {"head_001": "the same cases", "head_002": "its own validation cases, which are others"}
    for case, words in of_cases.items():
        of_case = {"metric_per_case": [{"prediction_file": f"{case}.nii.gz"}], "foreground_mean": {"Dice": 0.5}}
        (validation / "summary.json").write_text(json.dumps(of_case))
        announce_end(trainer)
        end = log.read_text().rpartition("| Dice")[2]
        assert end.startswith("        0.500, mean") and f"0.750 is the teacher's, of {words}\n" in end
    trainer.on_train_end()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min 1 s"), (12000, "3 h 20 min"), (90000, "1 d 1 h")]
)
def test_durations(seconds, said):
    assert _duration(seconds) == said


def test_the_logged_loss_is_the_weighted_sum(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method={**NOW, "weight": 0.5, "levels": 1})
    make_trainer(nnUNetTrainerDCD, plans, workspace).run_training()
    logged = checkpoint(workspace)["logging"]
    expected = np.array(logged["segmentation"]) + 0.5 * np.array(logged["dcd"])
    np.testing.assert_allclose(logged["train_losses"], expected, rtol=1e-5)


def test_before_the_ramp_a_student_trains_as_without_a_teacher(workspace):
    training = {**SHORT, "num_epochs": 3}
    plans = workspace.plans("nnUNetPlans", training=training, method={"ramp": [1, 1], "weight": 1.0})
    distilled = make_trainer(nnUNetTrainerDCD, plans, workspace)
    distilled.run_training()
    alone = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=training), workspace)
    alone.run_training()
    ours, theirs = distilled.logger.get_checkpoint(), alone.logger.get_checkpoint()
    assert math.isnan(ours["dcd"][0]) and math.isnan(ours["dcd"][1]) and ours["dcd"][2] > 0
    assert ours["segmentation"][0] == theirs["segmentation"][0]  # same weights, same batches
    assert ours["train_losses"][:2] == theirs["train_losses"][:2]
    assert ours["train_losses"][2] > ours["segmentation"][2]


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_a_step_without_terms_is_nnunets_own(workspace, factor):
    """This includes gradient clipping, momentum and weight decay."""
    whole = workspace.plans("nnUNetPlans", training=SHORT, student={"reduction": 1})
    ours = make_trainer(nnUNetTrainerNoKD, whole, workspace)
    theirs = make_trainer(nnUNetTrainer, workspace.plans("nnUNetPlans"), workspace)
    for trainer in (ours, theirs):
        trainer.initialize()
        trainer.network.train()
    theirs.network.load_state_dict(ours.trained().student.state_dict())
    deep = {"data": torch.randn(2, ours.num_input_channels, *ours.configuration_manager.patch_size)}
    shapes = [logits.shape[2:] for logits in theirs.network(deep["data"])]
    deep["target"] = [torch.randint(0, 2, (2, 1, *shape)).float() for shape in shapes]
    for trainer in (ours, theirs):
        loss = trainer.loss
        trainer.loss = lambda output, target, loss=loss: factor * loss(output, target)
        losses = [float(trainer.train_step(deep)["loss"]) for _ in range(3)]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.network.parameters() if p.grad is not None])
        trainer.seen = [*losses, float(norm)]
    assert ours.seen == pytest.approx(theirs.seen, rel=1e-4)
    assert ours.seen[-1] == pytest.approx(12, rel=1e-4) if factor > 1 else ours.seen[-1] < 12
    mine, stock = ours.trained().student, theirs.network
    torch.testing.assert_close(mine.state_dict(), stock.state_dict(), rtol=1e-4, atol=1e-5)
    for a, b in zip(mine.parameters(), stock.parameters(), strict=True):
        if b.grad is not None:
            momenta = ours.optimizer.state[a]["momentum_buffer"], theirs.optimizer.state[b]["momentum_buffer"]
            torch.testing.assert_close(*momenta, rtol=1e-3, atol=1e-4)


def test_a_convex_term_gets_its_share_after_its_ramp_has_begun(workspace):
    method = {"ramp": [1, 0], "weight": 0.25}
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=method)
    make_trainer(nnUNetTrainerLogitsKD, plans, workspace).run_training()
    logged = checkpoint(workspace, "nnUNetTrainerLogitsKD")["logging"]
    segmentation, logits = logged["segmentation"], logged["logits"]
    assert logged["train_losses"] == pytest.approx([segmentation[0], 0.75 * segmentation[1] + 0.25 * logits[1]])


@pytest.mark.slow
def test_fitted_initial_weights_leave_unseeded_loading_unseeded(workspace):
    plans = workspace.plans("nnUNetPlans", training={**SHORT, "seed": None, "initial_weights": "reconstructed"})
    drawn = []
    for seed in (1, 2):
        trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace)
        trainer.initialize()
        torch.manual_seed(seed)
        np.random.seed(seed)
        trainer.on_train_start()
        drawn.append((torch.rand(()).item(), np.random.random()))
        trainer.on_train_end()
        Path(trainer.output_folder, "checkpoint_final.pth").unlink()
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]


def test_residual_encoder_student_of_a_plain_teacher(workspace):
    plans = workspace.plans("nnUNetPlans", training=SHORT, method=NOW)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    trainer = make_trainer(nnUNetTrainerDCD, plans, workspace)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_checkpoint()["dcd"]).all()


def test_a_trainer_without_a_method_can_share_its_plans_with_one(workspace):
    trainer = make_trainer(nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", method={"weight": 1}), workspace)
    trainer.on_train_start()
    assert "nnunet_kd.method of the plans is not used" in Path(trainer.log_file).read_text()


def test_network_without_an_encoder_is_refused_before_training(workspace):
    teacher = {"plans": "nnUNetPlans"}
    plans = workspace.plans("nnUNetPlans", training=SHORT, student={"source_plans": "other"}, teacher=teacher)
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "tests.training.test_trainer.NoEncoder",
        "arch_kwargs": {},
        "_kw_requires_import": [],
    }
    with pytest.raises(NotImplementedError, match="NoEncoder has no encoder that lists output_channels"):
        make_trainer(nnUNetTrainerDCD, plans, workspace)
    assert not (workspace.results / "nnUNetTrainerDCD__nnUNetPlans__3d_fullres").exists()


class NoEncoder(torch.nn.Module):
    def __init__(self, input_channels, num_classes, deep_supervision=False):
        super().__init__()


@pytest.mark.slow
def test_stock_commands_train_resume_and_predict_with_no_teacher_present(workspace):
    """Run the four commands of the README for a few epochs, with loading processes."""
    training = {**SHORT, "num_epochs": 3}
    workspace.plans("nnUNetPlans_short", training=training, teacher={"plans": "nnUNetPlans"}, method={"ramp": [1, 2]})
    options = ["598", "3d_fullres", "0", "-tr", "nnUNetTrainerDCD", "-p", "nnUNetPlans_short", "-device", "cpu"]
    printed = workspace.process("nnUNetv2_train", *options, nnUNet_n_proc_DA="2")
    assert "distilling dcd: weight 0.01, ramp from epoch 1 over 2" in printed
    start, _, end = printed.partition("Epoch 0")
    assert re.search(r"\| student     [\d,]+ parameters, 1/[\d.]+ of the teacher's\n", start)
    assert f"| teacher     {workspace.teacher}/fold_0/checkpoint_final.pth\n" in start  # it was never validated
    assert "| epochs      3 of 2 iterations\n" in start
    assert re.search("at the pace of this epoch, the other 2 take [1-9][0-9]* (s|min)", end)
    folder = workspace.results / "nnUNetTrainerDCD__nnUNetPlans_short__3d_fullres"
    logged = checkpoint(workspace, plans="nnUNetPlans_short")["logging"]

    assert f"| student     {folder}/fold_0 (checkpoint_final.pth" in end
    dice = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
    assert f"| Dice        {dice:.3f}, mean over the 2 validation cases and all structures\n" in end
    lines = re.findall(r"^\| (?:next|    )        (.*)$", end, re.MULTILINE)
    commands = [shlex.split(line) for line in lines if not line[0].isdigit()]
    assert [words[:2] for words in commands] == [
        ["nnUNetv2_predict", "-tr"],
        ["nnunet_kd", "export"],
        ["nnunet_kd", "export"],
        ["nnunet_kd", "compare"],
    ]
    for words in commands[1:]:
        assert parser().parse_args(words[1:]).f == (["0"] if words[1] == "export" else [0])

    final = folder / "fold_0" / "checkpoint_final.pth"
    final.unlink()  # only the best checkpoint, of an earlier epoch, is left
    workspace.command("nnUNetv2_train", *options, "--c", nnUNet_n_proc_DA="1")
    resumed = checkpoint(workspace, plans="nnUNetPlans_short")["logging"]
    np.testing.assert_allclose(resumed["train_losses"], logged["train_losses"], rtol=1e-5)

    shutil.rmtree(workspace.teacher)
    output = workspace.root / "predicted"
    given = {"IMAGES": str(workspace.raw / "imagesTs"), "SEGMENTATIONS": str(output)}
    words = [given.get(word, word) for word in commands[0]]
    workspace.command(*words, "-npp", "1", "-nps", "1")  # the command says that it runs on the CPU
    assert [path.name for path in output.glob("*.nii.gz")] == ["head_006.nii.gz"]
