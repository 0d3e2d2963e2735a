import pytest
import torch

from nnunet_kd.losses import DCDLoss
from nnunet_kd.teachers.stages import EncoderStages, match_stages
from nnunet_kd.training.terms import StageTerm

TERM = StageTerm("dcd", DCDLoss, weight=0.01, ramp=(0.1, 0.5), options={"levels": 2})
TEACHER = EncoderStages((32, 64, 128), ((1, 1, 1), (2, 2, 2), (4, 4, 4)))


def test_block_goes_before_trainer_before_loss():
    configured = TERM.configured({"weight": 0.05, "bands": "detail"}, 100)
    assert configured.weight == 0.05
    assert (configured.loss.levels, configured.loss.bands, configured.loss.wavelet) == (2, "detail", "db4")
    assert TERM.configured({"levels": 1, "ramp": None}, 100).loss.levels == 1
    assert TERM.configured({"ramp": None}, 100).weight_at(0) == 0.01
    assert TERM.configured({}, 100).weight_at(5) == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"level": 2}, "unknown key 'level' in nnunet_kd.method: did you mean 'levels'"),
        ({"weight": "a"}, "nnunet_kd.method.weight must be a number above 0, got 'a'"),
        ({"weight": 0}, "nnunet_kd.method.weight must be a number above 0, got 0"),
        ({"levels": 0}, "nnunet_kd.method: levels must be a positive integer, got 0"),
        ({"ramp": [200, 1]}, r"nnunet_kd.method: method.ramp \[200, 1\] leaves the weight at 0"),
    ],
)
def test_errors_name_the_key(method, message):
    with pytest.raises(ValueError, match=message):
        TERM.configured(method, 100)


def test_sum_over_stages_of_one_grid():
    student = EncoderStages((8, 8, 16, 32), ((1, 1, 1), (1, 2, 2), (2, 2, 2), (4, 4, 4)))
    assert match_stages(student, TEACHER) == [(0, 0), (2, 1), (3, 2)]
    term = TERM.configured({}, 10)
    adapters = term.adapters(student, TEACHER)
    assert [tuple(adapter.weight.shape[:2]) for adapter in adapters] == [(32, 8), (64, 16), (128, 32)]
    sizes = [(8, 8, 8), (8, 4, 4), (4, 4, 4), (2, 2, 2)]
    features = [torch.randn(1, w, *size) for w, size in zip(student.widths, sizes, strict=True)]
    taught = [torch.randn(1, w, *sizes[i]) for w, i in zip(TEACHER.widths, (0, 2, 3), strict=True)]
    parts = [term.loss(features[i], taught[j], a) for (i, j), a in zip(match_stages(student, TEACHER), adapters)]  # noqa: B905
    torch.testing.assert_close(term(features, taught, match_stages(student, TEACHER), adapters), sum(parts))


def test_no_common_grid():
    with pytest.raises(ValueError, match="no encoder stage of the student"):
        match_stages(EncoderStages((8,), ((1, 3, 3),)), TEACHER)
