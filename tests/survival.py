"""Commands that are killed and started again: in the end everything is as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segment_anything

from nnunet_kd.cli import main
from tests.killing import Ended, killed_at_rename, run_killed, times_of_all_phases, wait_until_alone
from tests.small_networks import tiny_sam

Tree = dict[str, bytes]

MARK = "NNUNET_KD_SURVIVOR"  # a variable by which its processes are found
ROUNDS = 8  # of kills; a busy machine may be in one state all the while


def tree(*folders: Path) -> Tree:
    """Content of all files below folders; hidden ones too."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_command(*words: str) -> int:
    """``nnunet_kd``, which knows a tiny SAM."""
    segment_anything.sam_model_registry["tiny"] = tiny_sam
    return main(words)


@dataclass
class Survivor:
    """A command, and what it makes.

    Attributes:
        words: Of the command, to be started again with the same.
        folders: All it writes to.
        log: For its output.
        environment: Its variables; nnU-Net's folders among them.
        whole: Says of a tree, as a kill left it, what in it would be taken for whole.
        same: Whether two finished trees are the same.
    """

    words: tuple[str, ...]
    folders: tuple[Path, ...]
    log: Path
    environment: Mapping[str, str]
    whole: Callable[[Tree], Tree]
    same: Callable[[Tree, Tree], Any] = lambda one, other: one == other

    def run(self, after: float | None = None) -> Ended:
        """In a process that is killed after so many seconds."""
        return run_killed(run_command, *self.words, log=self.log, after=after, environment=self._variables)

    @property
    def _variables(self) -> dict[str, str]:
        return {**self.environment, MARK: str(self.log)}

    def undisturbed(self) -> tuple[Tree, float]:
        """What it makes when it is left alone, and how long that takes; nothing of it stays."""
        before = tree(*self.folders)
        ended = self.run()
        assert ended.exit_code == 0, ended.output
        made = tree(*self.folders)
        self.restore(before)
        return made, ended.seconds

    def restore(self, before: Tree) -> None:
        """Remove what it made."""
        for folder in self.folders:
            for path in sorted(folder.rglob("*"), reverse=True):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
                elif not path.is_dir() and f"{folder.name}/{path.relative_to(folder)}" not in before:
                    path.unlink()

    def survives_random_kills(self, kills: int, different: int = 1) -> None:
        """Kill it so often, at times of all its phases, and again until it was found in so many different states."""
        before = tree(*self.folders)
        expected, seconds = self.undisturbed()
        states: set[int] = set()
        for seed in range(ROUNDS):
            times = times_of_all_phases(kills, seconds, seed)
            while times:
                ended = self.run(times[-1])
                if ended.finished:  # what was done before is not done again, and the machine may be faster now
                    self._check_end(ended, expected)
                    self.restore(before)
                    times[-1] *= 0.9
                    continue
                times.pop()
                states.add(self._check(expected))
            if len(states) >= different:
                break
        assert len(states) >= different, f"found in {len(states)} states in {ROUNDS * kills} kills"
        self._finish(expected)
        self.restore(before)

    def survives_kills_at_renames(self) -> int:
        """Kill it right before and right after each file or folder gets its name; returns how many there are."""
        before = tree(*self.folders)
        expected, _ = self.undisturbed()
        number = 0
        while True:
            for afterwards in (False, True):
                ended = run_killed(
                    *(killed_at_rename, number, afterwards, run_command, *self.words),
                    log=self.log,
                    environment=self._variables,
                )
                if ended.finished:
                    assert ended.exit_code == 0, ended.output
                    self.restore(before)
                    return number
                self._check(expected)
                self._finish(expected)
                self.restore(before)
            number += 1

    def _check(self, expected: Tree) -> int:
        wait_until_alone(MARK, str(self.log))
        taken = self.whole(tree(*self.folders))
        for name, content in taken.items():
            assert expected[name] == content, name
        return len(taken)

    def _finish(self, expected: Tree) -> None:
        self._check_end(self.run(), expected)

    def _check_end(self, ended: Ended, expected: Tree) -> None:
        # A kill after the last name was given leaves a finished data set, which is not made again.
        assert ended.exit_code == 0 or "is there already" in ended.output, ended.output
        assert self.same(tree(*self.folders), expected), ended.output


def convert(root: Path, name: str, layout: Callable[[Path], None], workers: int) -> Survivor:
    """``nnunet_kd dataset`` on a few synthetic files."""
    source = root / "source"
    source.mkdir()
    layout(source)
    folders = tuple(root / folder for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
    for folder in folders:
        folder.mkdir()
    return Survivor(
        ("dataset", name, str(source), "-d", "777", "-np", str(workers)),
        folders,
        root / "log",
        {folder.name: str(folder) for folder in folders},
        lambda left: {name: content for name, content in left.items() if ".unfinished" not in name},
    )


def store(workspace: Any, weights: Path, *words: str) -> Survivor:
    """``nnunet_kd soft-labels`` with a tiny SAM, always to be continued."""
    folder = workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_sam"
    folder.mkdir()

    def whole(left: Tree) -> Tree:
        """A case is there where its record is."""
        recorded = {name.removesuffix(".json") for name in left if name.endswith(".json")}
        return {
            name: content
            for name, content in left.items()
            if name.removesuffix(".b2nd") in recorded or name.endswith(".json")
        }

    given = ("soft-labels", "-d", "598", "-device", "cpu", "--sam", "tiny", "--checkpoint", str(weights), "--continue")
    return Survivor((*given, *words), (folder,), workspace.root / "log", workspace.environment(), whole)
