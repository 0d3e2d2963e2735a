import pytest

from nnunet_kd.cli import main

COMPARE = ("compare", "-d", "598", "-m", "NoKD", "-o", "nowhere")
LABELS = ("soft-labels", "-d", "598", "--teacher")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*COMPARE, "--jobs", "2"), "--jobs needs --launcher"),
        ((*COMPARE, "--launcher", "local", "--slurm-time", "30"), "--slurm-time belongs to --launcher slurm"),
        ((*COMPARE, "--launcher", "slurm", "--devices", "0"), "--devices belongs to --launcher local: Slurm chooses"),
        ((*COMPARE, "--launcher", "local", "--devices", "0", "0"), "--devices has an entry twice: 0 0"),
        ((*COMPARE, "--launcher", "local", "--devices", "0", "--jobs", "2"), "give --devices or --jobs"),
        ((*COMPARE, "--launcher", "local", "-device", "cpu", "--devices", "0"), "names GPUs, but -device is cpu"),
        ((*COMPARE, "--launcher", "local", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        ((*COMPARE, "--launcher", "slurm", "--slurm-gpus", "-1"), "--slurm-gpus must be at least 0, got -1"),
        ((*COMPARE, "--submit-only"), "--submit-only belongs to --launcher slurm"),
        ((*COMPARE, "--probe"), "--probe belongs to --plan"),
        ((*COMPARE, "--status"), "nowhere/jobs.json does not exist: no --launcher has begun to work in this folder"),
        ((*LABELS, "--launcher", "slurm", "--devices", "0"), "--devices belongs to --launcher local"),
    ],
)
def test_arguments_that_do_not_fit(capsys, words, message):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
