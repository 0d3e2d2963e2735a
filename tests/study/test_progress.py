"""Progress with the time left, from what commands print."""

import pytest

from nnunet_kd.study.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Function that lets the given number of seconds pass."""
    passed = [0.0]
    monkeypatch.setattr("nnunet_kd.study.progress.time.monotonic", lambda: passed[0])

    def wait(seconds):
        passed[0] += seconds

    return wait


def test_epochs_of_a_resumed_training(clock):
    progress = Progress(100)
    assert progress.line("2026-01-01 10:00:00.0: Epoch 50") == "epoch 51 of 100"
    clock(30)
    assert progress.line("2026-01-01 10:00:30.0: Epoch 51 ") == "epoch 52 of 100, about 24:30 left"
    clock(270)
    assert progress.line("Epoch 52") == "epoch 53 of 100, about 2:00:00 left"
    assert Progress().line("Epoch 3") == "epoch 4"


def test_bars_are_shown_from_time_to_time(clock):
    progress = Progress()
    bar = "soft labels 'teacher':  20%|##   | 2/10 [00:59<03:56, 29.5s/case]\n"
    assert progress.line(bar) is None
    clock(20)
    assert progress.line(bar.replace("2/10", "0/10")) is None and progress.line(bar.replace("03:56", "?")) is None
    assert progress.line(bar) == "2 of 10, about 03:56 left"
    assert progress.line(bar) is None


def test_lines_of_the_log():
    progress = Progress()
    for text in ("Pseudo dice [0.5]", "initial weights: 9% of the fit is done, about 566 s are left"):
        assert progress.line(f"2026-01-01 10:00:00.0: {text}\n") == text
    assert progress.line("2026-01-01 10:00:00.0: train_loss 0.1") is None
