"""A fixture that starts a real Slurm of one node, once for all tests here."""

import os
import tempfile
from pathlib import Path

import pytest

from nnunet_kd.study.slurm import SlurmLauncher
from tests.commands import SEEN_CORES
from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def running_cluster():
    """Return a cluster that runs until the last test has ended; skip where Slurm is not installed."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def cluster(running_cluster, monkeypatch):
    """Return the cluster, which commands of this test use, and end its jobs after the test."""
    for name, value in (
        ("SLURM_CONF", running_cluster.environment["SLURM_CONF"]),
        ("PATH", running_cluster.environment["PATH"]),
        ("nnUNet_n_proc_DA", "1"),
        ("OMP_NUM_THREADS", "1"),
        (SEEN_CORES, str(os.cpu_count())),  # of forked commands, as in the jobs
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(SlurmLauncher, "poll", 0.5)
    monkeypatch.setattr(SlurmLauncher, "patience", 5.0)
    yield running_cluster
    running_cluster.run("scancel", "--user", "root", check=False)
