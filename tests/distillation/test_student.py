from copy import deepcopy

import pytest
import torch
from torch import nn

from nnunet_kd.distillation.average import WeightAverage, averaged_tensors
from nnunet_kd.distillation.student import StudentWithAdapters
from nnunet_kd.networks.memory_layout import NARROW, in_fast_layout
from nnunet_kd.networks.stages import encoder_stages
from nnunet_kd.teachers.teacher import Teacher
from nnunet_kd.training.checkpoint import load_average, plainly_laid_out, save_atomically
from tests.small_networks import unet


@pytest.fixture
def joint():
    adapters = nn.ModuleDict({"dcd": nn.ModuleList([nn.Conv2d(4, 8, 1)])})
    return StudentWithAdapters(unet(), adapters)


def test_state_is_the_students_and_parameters_are_all(joint):
    assert joint.state_dict().keys() == joint.student.state_dict().keys()
    assert not any("adapter" in key or "student" in key for key in joint.state_dict())
    joint.load_state_dict(unet().state_dict())
    own = {id(parameter) for parameter in joint.student.parameters()}
    assert len({id(parameter) for parameter in joint.parameters()} - own) == 2


def test_features_in_training_only(joint):
    images = torch.randn(1, 2, 16, 12)
    logits, encoder, decoder = joint.train()(images)
    assert decoder == []
    assert [tuple(f.shape[1:]) for f in encoder] == [(4, 16, 12), (8, 8, 6), (16, 4, 3)]
    torch.testing.assert_close(joint.eval()(images), logits)
    assert len(logits) == 2
    joint.decoder.deep_supervision = False
    torch.testing.assert_close(joint(images), logits[0])


def test_stages_of_the_decoder_finest_first():
    images, student = torch.randn(1, 2, 16, 12), unet()
    joint = StudentWithAdapters(student, nn.ModuleDict(), decoder=True).train()
    logits, _, decoder = joint(images)
    assert [tuple(stage.shape[1:]) for stage in decoder] == [(4, 16, 12), (8, 8, 6)]
    torch.testing.assert_close(student.decoder.seg_layers[-1](decoder[0]), logits[0])
    joint.eval()(images)
    assert len(joint.train()(images)[2]) == 2  # the pass in evaluation mode has left nothing
    decoder = joint.train()(images).decoder
    student(images)  # as in the fit of initial weights: nothing is recorded
    assert len(decoder) == 2
    with pytest.raises(NotImplementedError, match="Linear has no decoder.stages, one for each encoder stage"):
        StudentWithAdapters(nn.Linear(1, 1), nn.ModuleDict(), decoder=True)
    student.decoder.stages = student.decoder.stages[:1]
    with pytest.raises(NotImplementedError, match="PlainConvUNet has no decoder.stages, one for each encoder stage"):
        StudentWithAdapters(student, nn.ModuleDict(), decoder=True)


def test_teacher_is_frozen_and_stays_in_evaluation_mode():
    teacher = Teacher(unet(8)).train()
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    logits, features = teacher(torch.randn(1, 2, 16, 12, requires_grad=True))
    assert logits == [] and not any(f.requires_grad for f in features)
    assert teacher.stages.widths == (8, 16, 32) and teacher.stages.strides == ((1, 1), (2, 2), (4, 4))
    assert not any(key.startswith("decoder") for key in teacher.state_dict())


def test_teacher_returns_only_what_is_requested():
    images, network = torch.randn(1, 2, 16, 12), unet(8)
    expected = network.eval()(images)
    both = Teacher(network, logits=True, deep_supervision=True)
    logits, features = both(images)
    assert len(features) == 3 and len(logits) == 1  # nnU-Net never trains the coarsest of two scales
    torch.testing.assert_close(logits[0], expected[0])
    torch.testing.assert_close(both.decode(features), expected[0])
    assert both(images, logits=False)[0] == []
    full, none = Teacher(network, features=False, logits=True)(images)
    assert none == [] and len(full) == 1
    torch.testing.assert_close(full[0], expected[0])


def test_a_network_without_encoder_can_teach_logits():
    network = nn.Conv2d(2, 3, 1)
    logits, features = Teacher(network, features=False, logits=True)(torch.randn(1, 2, 4, 4))
    assert features == [] and logits[0].shape == (1, 3, 4, 4)
    with pytest.raises(NotImplementedError, match="the teacher's network, torch.Conv2d, has no encoder stages"):
        Teacher(network)


def test_network_without_stages_is_refused():
    with pytest.raises(NotImplementedError, match="Linear has no encoder that lists output_channels and strides"):
        encoder_stages(nn.Linear(1, 1))


def test_average_of_weights():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    average = WeightAverage(module, decay=0.75)
    nn.init.constant_(module.weight, 2.0)
    average.update()
    assert average.network.weight.item() == 1.25 and module.weight.item() == 2.0
    assert not average.network.weight.requires_grad and module.weight.requires_grad
    average.restart()
    assert average.network.weight.item() == 2.0


def test_running_statistics_are_averaged_with_the_weights_they_belong_to():
    """With batch normalisation, averaged weights do not fit the statistics of the last step."""
    module = nn.BatchNorm2d(1)
    average = WeightAverage(module, decay=0.75)
    module.running_mean.fill_(2.0)
    module.num_batches_tracked += 5
    average.update()
    assert average.network.running_mean.item() == 0.5 and average.network.num_batches_tracked == 5
    assert module.running_mean.item() == 2.0
    assert sorted(averaged_tensors(module)) == ["bias", "running_mean", "running_var", "weight"]


def test_the_average_is_evaluated_and_saved(joint):
    images = torch.randn(1, 2, 16, 12)
    joint.average = WeightAverage(joint.student, decay=0.5)
    before = joint.eval()(images)
    with torch.no_grad():
        for parameter in joint.student.parameters():
            parameter.add_(1.0)
    assert all(map(torch.equal, joint(images), before))
    assert not torch.equal(joint.train()(images).logits[0], before[0])
    saved = joint.state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in joint.average.network.state_dict().items())


@pytest.mark.parametrize("shown", [True, False])
def test_student_and_average_are_restored_from_a_checkpoint(joint, shown):
    """In earlier checkpoints nnU-Net's weights can be the student's own."""
    joint.average = WeightAverage(joint.student, decay=0.5)
    with torch.no_grad():
        for parameter in joint.student.parameters():
            parameter.add_(1.0)
    average, own = (
        {name: weight.clone() for name, weight in network.state_dict().items()}
        for network in (joint.average.network, joint.student)
    )
    stock, other = (average, joint.student) if shown else (own, joint.average.network)
    other = {name: tensor.clone() for name, tensor in averaged_tensors(other).items()}
    for asked in (True, False):  # whether the settings still ask for an average
        restored = StudentWithAdapters(unet(), deepcopy(joint.adapters))
        restored.average = WeightAverage(restored.student, decay=0.5) if asked else None
        restored.load_state_dict(stock)
        load_average(restored, other, shown)
        assert all(torch.equal(weight, own[name]) for name, weight in restored.student.state_dict().items())
        assert all(torch.equal(weight, average[name]) for name, weight in restored.evaluated.state_dict().items())


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_atomically({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"epoch": 2, "bad": lambda: None}, path)
    assert torch.load(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def convolutions(features):
    return nn.Sequential(nn.Conv3d(1, features, 3), nn.InstanceNorm3d(features), nn.Conv3d(features, 4, 3))


def test_a_narrow_network_is_laid_out_for_the_cpu():
    network = convolutions(NARROW)
    laid_out = in_fast_layout(deepcopy(network), torch.device("cpu"))
    weight = laid_out[2].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()
    for name, value in network.state_dict().items():
        assert torch.equal(laid_out.state_dict()[name], value)
    images = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(laid_out(images), network(images))


def test_saved_weights_are_contiguous_and_shared():
    weight = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    plain = torch.randn(2, 3)
    saved = plainly_laid_out({"a": weight, "b": weight.detach(), "c": plain})
    assert saved["a"].is_contiguous() and torch.equal(saved["a"], weight)
    assert saved["a"].data_ptr() == saved["b"].data_ptr() != weight.data_ptr() and saved["c"] is plain


@pytest.mark.parametrize(("features", "device"), [(NARROW, "cuda"), (2 * NARROW, "cpu")])
def test_other_networks_keep_their_layout(features, device):
    network = in_fast_layout(convolutions(features), torch.device(device))
    assert all(weight.is_contiguous() for weight in network.parameters())
