import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_kd.nnunet.planning import student_plans
from nnunet_kd.nnunet.settings import recorded_leakage
from nnunet_kd.pruning.selection import draw, in_double, selected_weights
from nnunet_kd.trainers.nnUNetTrainerDCD import nnUNetTrainerDCD
from nnunet_kd.trainers.nnUNetTrainerKD import nnUNetTrainerKD
from nnunet_kd.trainers.nnUNetTrainerNoKD import nnUNetTrainerNoKD
from tests.conftest import SHORT, make_trainer, stop_within

FROM_TEACHER = {**SHORT, "initial_weights": "teacher"}


class Joined(nn.Module):
    """Two branches joined, as a skip connection is."""

    def __init__(self, width, inputs=2, classes=3):
        super().__init__()
        self.down = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.deep = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Conv2d(2 * width, classes, 1)

    def forward(self, images):
        skip = self.norm(self.down(images))
        return self.out(torch.cat((self.up(self.deep(skip).relu()), skip), 1))


def test_every_other_channel_is_taken():
    teacher, student = Joined(8), Joined(4)
    weights = selected_weights(teacher, student)
    torch.testing.assert_close(weights["down.weight"], teacher.down.weight[::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["down.bias"], teacher.down.bias[::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["norm.weight"], teacher.norm.weight[::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["deep.weight"], 2 * teacher.deep.weight[::2, ::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["up.weight"], 2 * teacher.up.weight[::2, ::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["out.weight"], 2 * teacher.out.weight[:, ::2], rtol=0, atol=0)
    torch.testing.assert_close(weights["out.bias"], teacher.out.bias, rtol=0, atol=0)


def test_a_teacher_whose_channels_are_all_there_twice_is_the_student():
    """A layer reads the channels it read in the teacher, also where two tensors are joined, and sums to the same."""
    torch.manual_seed(0)
    teacher, student = Joined(8), Joined(4)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            for axis in range(weight.dim()):
                if weight.shape[axis] != dict(student.named_parameters())[name].shape[axis]:
                    first = weight.index_select(axis, torch.arange(0, weight.shape[axis], 2))
                    weight.copy_(first.repeat_interleave(2, axis))
    student.load_state_dict(selected_weights(teacher, student))
    images = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(student(images), teacher(images))


def test_widths_need_not_divide_each_other():
    weights = selected_weights(Joined(7), Joined(3))
    assert {name: w.shape for name, w in weights.items()} == {n: w.shape for n, w in Joined(3).state_dict().items()}


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 1)), "other layers than the teacher: only the student has 0.bias"),
        (Joined(16), r"the student's down.weight \[16, 2, 3, 3\] cannot be taken from the teacher's \[8, 2, 3, 3\]"),
    ],
)
def test_networks_that_do_not_fit(student, message):
    with pytest.raises(ValueError, match=message):
        selected_weights(Joined(8), student)


def test_residual_encoders_whose_projections_differ():
    """A block has one where its stage is wider than the one before."""

    def network(widths):
        with torch.device("meta"):
            return ResidualEncoderUNet(1, 3, widths, nn.Conv2d, 3, [1, 2, 2], 1, 2, 1)

    with pytest.raises(ValueError, match="only the teacher has .*skip.*: stages of equal width have no projec"):
        selected_weights(network([32, 64, 128]), network([8, 8, 16]))
    assert selected_weights(network([32, 64, 128]), network([4, 8, 16]))


def test_a_teacher_on_a_gpu_is_taken_from_there():
    """Of tensors that stand for those of a GPU, and refuse others as it would."""
    with FakeTensorMode():
        with torch.device("cuda"):
            teacher = Joined(8)
        student = Joined(4)
        weights = selected_weights(teacher, student)
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in student.state_dict().items()
    }
    assert {weight.device.type for weight in weights.values()} == {"cuda"}


def test_a_training_that_begins_anew_starts_from_the_teacher_too(workspace):
    """Without --c, beside what another has left."""
    plans = workspace.plans("nnUNetPlans", training=FROM_TEACHER, teacher={"folds": [0]})
    first = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1)
    stop_within(first, 3)
    assert (Path(first.output_folder) / "checkpoint_latest.pth").is_file()
    again = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1)
    assert again.sources.start is None  # it may be about to go on
    again.initialize()
    own = again.trained().student.state_dict()
    for name, weight in first.sources.start.weights.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=0)
    stop_within(again, 1)
    assert recorded_leakage(json.loads((Path(first.output_folder_base) / "plans.json").read_text()))["1"]


@pytest.mark.parametrize("kind", [nnUNetTrainerNoKD, nnUNetTrainerDCD])
def test_a_training_starts_from_the_teacher(workspace, kind):
    plans = workspace.plans("nnUNetPlans", training=FROM_TEACHER)
    trainer = make_trainer(kind, plans, workspace)
    trainer.initialize()
    taught = torch.load(workspace.teacher / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    own = trainer.trained().student.state_dict()
    assert own.keys() == taught.keys()
    name = "encoder.stages.0.0.convs.0.conv.weight"
    rows = torch.arange(own[name].shape[0]) * taught[name].shape[0] // own[name].shape[0]
    torch.testing.assert_close(own[name], taught[name][rows], rtol=0, atol=0)
    trainer.run_training()
    again = make_trainer(kind, plans, workspace)
    assert again.sources.start is None  # it goes on from what was saved, and needs no teacher for that
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    for key, weight in trainer.trained().student.state_dict().items():
        torch.testing.assert_close(again.trained().student.state_dict()[key], weight, rtol=0, atol=0)


def test_what_the_teacher_has_seen_is_noted(workspace):
    """Also where nothing else is distilled, and where the training goes on without the teacher."""
    plans = workspace.plans("nnUNetPlans", training=FROM_TEACHER, teacher={"folds": [0]})
    trainer = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1)
    assert "LEAKAGE" in trainer.sources.start.leakage
    stop_within(trainer, 3)
    results = Path(trainer.output_folder_base) / "plans.json"
    assert recorded_leakage(json.loads(results.read_text())) == {"1": trainer.sources.start.leakage}
    shutil.rmtree(workspace.teacher)
    again = make_trainer(nnUNetTrainerNoKD, plans, workspace, fold=1, resume=True)
    again.load_checkpoint(f"{trainer.output_folder}/checkpoint_latest.pth")
    again.run_training()
    assert recorded_leakage(json.loads(results.read_text())) == {"1": trainer.sources.start.leakage}


def test_a_network_of_its_own_has_no_teacher_to_start_from(workspace):
    plans = workspace.plans("dra", training=FROM_TEACHER, teacher={"plans": "nnUNetPlans"})
    dra = student_plans(plans, 4, network="dra_unet")
    dra["nnunet_kd"] = {"student": {"source_plans": "nnUNetPlans"}, **plans["nnunet_kd"]}
    with pytest.raises(ValueError, match="initial_weights: the student has other layers .*; null starts from ran"):
        make_trainer(nnUNetTrainerNoKD, dra, workspace)
    assert not (workspace.results / "nnUNetTrainerNoKD__dra__3d_fullres").exists()


def test_a_student_of_several_teachers_is_told_how_to_go_on(workspace):
    """What the message says works as it stands."""
    teachers = [{}, {}]
    message = 'the plans name 2: keep one of them in nnunet_kd.teacher, or set "training": {"initial_weights": null}'
    with pytest.raises(ValueError, match=re.escape(message) + "$"):  # a trainer that has no terms, whatever plans say
        make_trainer(
            nnUNetTrainerNoKD, workspace.plans("nnUNetPlans", training=FROM_TEACHER, teacher=teachers), workspace
        )
    with pytest.raises(ValueError) as refused:
        make_trainer(nnUNetTrainerKD, workspace.plans("nnUNetPlans", training=SHORT, teacher=teachers), workspace)
    start, terms = re.findall(r'"(?:training|method)": (\{.*?\}(?:\]\})?)(?:,| to)', str(refused.value))
    training, method = {**SHORT, **json.loads(start)}, json.loads(terms)
    one = make_trainer(nnUNetTrainerKD, workspace.plans("nnUNetPlans", training=SHORT, teacher=teachers[:1]), workspace)
    assert one.sources.start is not None
    plans = workspace.plans("nnUNetPlans", training=training, method=method, teacher=teachers)
    together = make_trainer(nnUNetTrainerKD, plans, workspace)
    together.run_training()
    assert len(together.distiller.teacher.teachers) == 2 and together.sources.start is None


@pytest.mark.parametrize("count", [10, 1000, 2**20, 2**22])
def test_positions_are_drawn_from_all(count):
    drawn = draw(count, 500, torch.Generator().manual_seed(1))
    assert len(drawn) == min(count, 500) and drawn.min() >= 0 and drawn.max() < count
    assert len(drawn.unique()) >= 0.99 * len(drawn)
    assert abs(float(drawn.double().mean()) / count - 0.5) < 0.06
    assert torch.equal(drawn, draw(count, 500, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("device", "where"), [("mps", "cpu"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_float64_is_of_a_device_that_has_it(device, where):
    with FakeTensorMode():
        double = in_double(torch.empty(2, 3, device=device))
    assert double.dtype == torch.float64 and double.device.type == where
