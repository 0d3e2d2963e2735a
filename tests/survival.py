"""Checks that a command which is killed and started again makes the same files as one that is not."""

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

MARK = "NNUNET_KD_SURVIVOR"  # environment variable by which the processes of a command are found
ROUNDS = 8  # of kills, since all kills of a round can meet the same state on a busy machine


def tree(*folders: Path) -> Tree:
    """Return the content of all files below folders, including hidden ones."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_command(*words: str) -> int:
    """Run ``nnunet_kd`` with a tiny SAM."""
    segment_anything.sam_model_registry["tiny"] = tiny_sam
    return main(words)


@dataclass
class Survivor:
    """A command that has to survive kills, and the files it makes.

    Attributes:
        words: The words of the command, with which it is also started again.
        folders: All folders that the command writes to.
        log: The file for its output.
        environment: Its variables, including those of nnU-Net's folders.
        whole: Function that returns the files of a tree, as a kill left it, that would be taken for complete.
        same: Function that returns whether two finished trees are the same.
    """

    words: tuple[str, ...]
    folders: tuple[Path, ...]
    log: Path
    environment: Mapping[str, str]
    whole: Callable[[Tree], Tree]
    same: Callable[[Tree, Tree], Any] = lambda one, other: one == other

    def run(self, after: float | None = None) -> Ended:
        """Run the command in a process that is killed after the given seconds, if any."""
        return run_killed(run_command, *self.words, log=self.log, after=after, environment=self._variables)

    @property
    def _variables(self) -> dict[str, str]:
        return {**self.environment, MARK: str(self.log)}

    def undisturbed(self) -> tuple[Tree, float]:
        """Return what the command makes without a kill, and how long that takes; remove the files again."""
        before = tree(*self.folders)
        ended = self.run()
        assert ended.exit_code == 0, ended.output
        made = tree(*self.folders)
        self.restore(before)
        return made, ended.seconds

    def restore(self, before: Tree) -> None:
        """Remove everything that was not there before."""
        for folder in self.folders:
            for path in sorted(folder.rglob("*"), reverse=True):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
                elif not path.is_dir() and f"{folder.name}/{path.relative_to(folder)}" not in before:
                    path.unlink()

    def survives_random_kills(self, kills: int, different: int = 1) -> None:
        """Kill the command in all its phases, in rounds of ``kills``, until ``different`` states were found."""
        before = tree(*self.folders)
        expected, seconds = self.undisturbed()
        states: set[int] = set()
        for seed in range(ROUNDS):
            times = times_of_all_phases(kills, seconds, seed)
            while times:
                ended = self.run(times[-1])
                if ended.finished:  # finished work is not repeated, and the machine can be faster now
                    self._check_end(ended, expected)
                    self.restore(before)
                    times[-1] *= 0.9
                    continue
                times.pop()
                states.add(self._check(expected))
            if len(states) >= different:
                break
        assert len(states) >= different, f"found {len(states)} states in {ROUNDS * kills} kills"
        self._finish(expected)
        self.restore(before)

    def survives_kills_at_renames(self) -> int:
        """Kill the command right before and right after each rename, and return the number of renames."""
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
        # A kill after the last rename leaves a finished data set, which is not made again.
        assert ended.exit_code == 0 or "already exists" in ended.output, ended.output
        assert self.same(tree(*self.folders), expected), ended.output


def convert(root: Path, name: str, layout: Callable[[Path], None], workers: int) -> Survivor:
    """Return ``nnunet_kd dataset`` on a few synthetic files."""
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
    """Return ``nnunet_kd soft-labels --continue`` with a tiny SAM."""
    folder = workspace.preprocessed / "nnUNetPlans_3d_fullres_soft_sam"
    folder.mkdir()

    def whole(left: Tree) -> Tree:
        """Keep the cases that have a record."""
        recorded = {name.removesuffix(".json") for name in left if name.endswith(".json")}
        return {
            name: content
            for name, content in left.items()
            if name.removesuffix(".b2nd") in recorded or name.endswith(".json")
        }

    given = ("soft-labels", "-d", "598", "-device", "cpu", "--sam", "tiny", "--checkpoint", str(weights), "--continue")
    return Survivor((*given, *words), (folder,), workspace.root / "log", workspace.environment(), whole)
