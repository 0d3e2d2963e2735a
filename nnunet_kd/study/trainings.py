"""One training of a study as a command of nnU-Net that can be carried out anywhere: here, in a process, in a job.

Nothing here imports nnU-Net, so that a job starts at once.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_kd.storage.processes import BusyError, FileLock, holder_of
from nnunet_kd.storage.writing import check_writable_folder
from nnunet_kd.study.commands import Commands

FINAL = "checkpoint_final.pth"
_WAIT = 120.0  # seconds for the processes of a job that Slurm has started again elsewhere to end


@dataclass(frozen=True)
class Training:
    """A training with ``nnUNetv2_train``.

    Attributes:
        name: What messages and tables call it.
        log: The name of its log file without ``.log``.
        words: The command without ``--c``.
        fold: The folder of its fold in ``nnUNet_results``.
        lock: The file that a trainer of this package locks while it trains.
        epochs: The number of epochs that it trains; ``None`` if unknown.
    """

    name: str
    log: str
    words: tuple[str, ...]
    fold: Path
    lock: Path
    epochs: int | None = None

    @property
    def is_done(self) -> bool:
        """Whether the final checkpoint is complete; a kill can truncate those of nnU-Net's own trainers."""
        return zipfile.is_zipfile(self.fold / FINAL)

    @property
    def is_idle(self) -> bool:
        """Whether no other process trains it, as far as its trainer tells."""
        return holder_of(self.lock) is None

    def check_idle(self) -> None:
        """Check that no other process trains it; only trainers of this package tell.

        Raises:
            BusyError: If another process does.
        """
        if (holder := holder_of(self.lock)) is not None:
            raise BusyError(
                f"another process is training in {self.fold} (process {holder}): run this command again when it has "
                "ended; finished trainings are kept"
            )

    def carry_out(self, commands: Commands) -> None:
        """Train, resume if the training was stopped, or do nothing if it has finished.

        Raises:
            RuntimeError: If the command fails.
            UnwritableError: If the results cannot be written.
            BusyError: If another process is training it.
        """
        if self.is_done:
            return
        self.check_idle()
        check_writable_folder(self.fold)
        for path in self.fold.glob("checkpoint_*.pth"):
            if not zipfile.is_zipfile(path):  # a zip archive ends with its directory
                commands.say(f"removed {path}, which was truncated")
                path.unlink()
        begun = any((self.fold / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best"))
        try:
            commands.run(self.log, *self.words, *(["--c"] if begun else []), epochs=self.epochs)
        except RuntimeError:
            self.check_idle()  # another process could have started first
            raise

    def carry_out_in_job(self, commands: Commands) -> None:
        """Do the same in a job, which waits for the end of its predecessor, and which no second job can disturb.

        The trainers of nnU-Net itself hold no lock, so the job holds one beside the log.

        Raises:
            RuntimeError: As :meth:`carry_out`.
            OSError: As :meth:`carry_out`.
        """
        commands.logs.mkdir(parents=True, exist_ok=True)
        lock = _when_free(commands.logs / f"{self.log}.lock", self.lock)
        try:
            self.carry_out(commands)
        finally:
            lock.free()

    def described(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "fold": str(self.fold), "lock": str(self.lock)}

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Training:
        """Return the training that was described."""
        return cls(
            description["name"],
            description["log"],
            tuple(description["words"]),
            Path(description["fold"]),
            Path(description["lock"]),
            description["epochs"],
        )


@dataclass(frozen=True)
class Command:
    """Any other command that a job carries out, such as the report of a study or a part of a prediction.

    Attributes:
        name: What messages and tables call it.
        log: The name of its log file without ``.log``.
        words: The command.
        again: What to add if Slurm starts its job for the second time.
        epochs: A command trains none.
    """

    name: str
    log: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    epochs: int | None = None

    @property
    def is_done(self) -> bool:
        """Whether its files say that it is done, which they do not; see :class:`nnunet_kd.study.jobs.Outcome`."""
        return False

    @property
    def is_idle(self) -> bool:
        """Whether no other process works on it, as far as anybody tells."""
        return True

    def carry_out_in_job(self, commands: Commands) -> None:
        """Run the command.

        Raises:
            RuntimeError: If it fails.
        """
        again = self.again if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else ()
        commands.run(self.log, *self.words, *again)

    def described(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Command:
        """Return the command that was described."""
        words, again = (tuple(description.get(key, ())) for key in ("words", "again"))
        return cls(description["name"], description["log"], words, again)


Work = Training | Command


def work_of(description: Mapping[str, Any]) -> Work:
    """Return the training or other command that was described."""
    return Training.of(description) if "fold" in description else Command.of(description)


def _when_free(path: Path, other: Path) -> FileLock:
    """Return the lock of a file once nobody holds it or another lock.

    Raises:
        BusyError: If somebody still does after two minutes.
    """
    stop = time.monotonic() + _WAIT
    while True:
        try:
            lock = FileLock(path)
        except BusyError:
            if time.monotonic() > stop:
                raise BusyError(f"another job works on {path.stem}: it holds {path}") from None
        else:
            if holder_of(other) is None or time.monotonic() > stop:
                return lock  # the training itself says who holds the other
            lock.free()
        time.sleep(1)
