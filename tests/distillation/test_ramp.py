import math

import pytest

from nnunet_kd.distillation.ramp import read_ramp


def test_the_authors_ramp():
    ramp = read_ramp([150, 800], 1000)
    assert [ramp(epoch) for epoch in (0, 149, 150)] == [0, 0, 0]
    assert ramp(350) == pytest.approx((1 - math.cos(math.pi * 0.25)) / 2)
    assert ramp(550) == pytest.approx(0.5)
    assert ramp(950) == ramp(999) == 1


def test_fractions_refer_to_the_training():
    fractions, epochs = read_ramp([0.15, 0.8], 1000), read_ramp([150, 800], 1000)
    assert [fractions(epoch) for epoch in range(1000)] == pytest.approx([epochs(epoch) for epoch in range(1000)])
    assert read_ramp((0.15, 0.8), 10)(5) > 0.3


def test_none_means_no_ramp_and_a_length_of_zero_a_step():
    assert read_ramp(None, 10) is None
    step = read_ramp([3, 0], 10)
    assert [step(epoch) for epoch in (2, 3)] == [0, 1]


@pytest.mark.parametrize("value", ["0.1", [1], [1, 2, 3], [True, 1], [-1, 5], [0.5, 1.5], [0.1, None], 3])
def test_invalid_ramps(value):
    with pytest.raises(ValueError, match=r"ramp .* got"):
        read_ramp(value, 100)


def test_a_ramp_that_never_starts_is_refused():
    with pytest.raises(ValueError, match=r"\[150, 800\] leaves the weight at 0 for all 100 epochs"):
        read_ramp([150, 800], 100)


def test_a_linear_ramp():
    ramp = read_ramp([100, 200], 1000, "linear")
    assert [ramp(epoch) for epoch in (99, 100, 150, 300, 999)] == [0, 0, 0.25, 1, 1]
    with pytest.raises(ValueError, match="ramp_shape must be 'cosine' or 'linear', got 'step'"):
        read_ramp(None, 10, "step")
