"""A real Slurm of one node on this machine, from Debian's packages ``slurm-wlm`` and ``munge``.

It needs root but neither systemd nor cgroups. Everything lies in one folder, and nothing runs after :meth:`stop`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=4
KillWait=15
MpiDefault=none
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no cluster can be started here, or ``None`` if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge"
    return "Slurm's daemons need root here" if os.geteuid() else None


class Cluster:
    """One node with two cores.

    Args:
        folder: An empty folder with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start munge, the controller and the node, and wait until the node is idle."""
        host = socket.gethostname().partition(".")[0]
        ports = dict(zip(("controller", "node"), _free_ports(2), strict=True))
        conf = CONFIGURATION.format(host=host, folder=self.folder, **ports)
        (self.folder / "slurm.conf").write_text(conf)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": self.folder / "munge.socket"}
        files |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}
        self._start("munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items()))
        wait_for((self.folder / "munge.socket").exists, "munge has a socket")
        self._start("slurmctld", "-D")
        self.start_node()

    def start_node(self) -> None:
        """Start the node's daemon, and wait until the node can take jobs."""
        self._start("slurmd", "-D")
        wait_for(lambda: self.run("sinfo", "-h", "-o", "%T", check=False) in ("idle", "mixed"), "the node is idle")

    def kill_node(self) -> None:
        """Kill the node's daemon and everything that it has started, as if the machine had lost its power."""
        self._daemons["slurmd"].kill()
        self._daemons.pop("slurmd").wait()
        for process in list(self._of_jobs()):
            _kill(process)

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.run("scancel", "--user", "root", check=False)
        stop = time.monotonic() + 20
        while self.run("squeue", "-h", check=False) and time.monotonic() < stop:
            time.sleep(0.2)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for process in list(self._of_jobs()):
            _kill(process)

    def run(self, *words: str, check: bool = True) -> str:
        """Run one of Slurm's commands, and return what it prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def queue(self) -> dict[str, str]:
        """Return the states of the jobs in the queue."""
        printed = self.run("squeue", "--array", "-h", "-o", "%i %T", check=False)
        return dict(line.split() for line in printed.splitlines())

    def start_now(self, job: str) -> None:
        """Let a job that Slurm has put back into the queue start after seconds instead of two minutes.

        It would not start within the second in which the node has revoked its credential.
        """
        time.sleep(3)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def _start(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=_path())
        assert program is not None
        with (self.folder / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program, *words], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _of_jobs(self) -> Iterator[int]:
        """Yield the processes of this cluster's jobs and of their managers."""
        conf = f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()
        for entry in Path("/proc").iterdir():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                name = (entry / "comm").read_text()
            except (OSError, ValueError):
                continue
            in_job = any(variable.startswith(b"SLURMD_NODENAME=") for variable in variables)
            if entry.name.isdecimal() and conf in variables and (in_job or name.startswith("slurmstepd")):
                yield int(entry.name)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    """Wait until a condition holds."""
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, f"it is not true after {seconds:.0f} s that {what}"
        time.sleep(0.1)


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
