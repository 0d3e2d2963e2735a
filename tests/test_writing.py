"""A file is as it was before or complete, whatever ends its writing."""

import os
import platform
import subprocess
import time

import pytest
import torch

from nnunet_kd.training.checkpoint import save_atomically
from nnunet_kd.writing import DiskFullError, flush_folder, new_folder, replacing, write_whole
from tests.killing import is_alive


def test_replaces_at_the_end_only(tmp_path):
    path = tmp_path / "folder" / "file.json"
    write_whole(path, "first")
    with pytest.raises(KeyboardInterrupt), replacing(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() == "first"
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
    write_whole(path, "second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_an_hour_later(tmp_path):
    path = tmp_path / "checkpoint[0].pth"  # brackets mean something to glob
    old, young = (tmp_path / f"{path.name}.{number}.unfinished" for number in (1, 2))
    other = tmp_path / "checkpoint0.pth.3.unfinished"
    for leftover in (old, young, other):
        leftover.touch()
    long_ago = time.time() - 3601
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    write_whole(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, young, other])


def test_what_a_killed_process_of_this_machine_left_is_removed_at_once(tmp_path):
    dead = subprocess.Popen(["true"])
    while is_alive(dead.pid):  # nobody asks about it
        time.sleep(0.01)
    path, folder = tmp_path / "file.json", tmp_path / "folder"
    host = platform.node()[:40]
    kept = []
    for name in (f"file.json.{host}.{{}}.unfinished", f".unfinished_folder.{host}.{{}}"):
        (tmp_path / name.format(dead.pid)).mkdir() if "folder" in name else (tmp_path / name.format(dead.pid)).touch()
        kept.append(tmp_path / name.format(os.getppid()))
        kept[-1].touch()
    kept.append(tmp_path / f".unfinished_folder2.{host}.{dead.pid}")
    kept[-1].touch()
    write_whole(path, "whole")
    with new_folder(folder) as unfinished:
        (unfinished / "file").touch()
    assert sorted(tmp_path.iterdir()) == sorted([path, folder, *kept])
    dead.wait()


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(KeyboardInterrupt), new_folder(path) as unfinished:
        (unfinished / "half").touch()
        assert unfinished.parent == path.parent and unfinished.name.startswith(".unfinished_folder")
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())
    with new_folder(path) as unfinished:
        (unfinished / "whole").touch()
    assert [entry.name for entry in path.iterdir()] == ["whole"] and list(path.parent.iterdir()) == [path]
    with pytest.raises(FileExistsError, match="folder is there already"), new_folder(path):
        pass
    with pytest.raises(FileExistsError), new_folder(path.parent / "other") as unfinished:
        (path.parent / "other").mkdir()  # by another process
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["folder", "other"]


def test_every_file_of_a_folder_goes_onto_the_disk(tmp_path, monkeypatch):
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "file").touch()
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    flush_folder(tmp_path / "one")
    assert {path.stat().st_ino for path in [tmp_path / "one", *(tmp_path / "one").rglob("*")]} == set(flushed)


def test_a_full_disk_leaves_no_folder(small_disk):
    disk = small_disk(2**20)
    with pytest.raises(DiskFullError) as refused, new_folder(disk / "folder") as unfinished:
        (unfinished / "file").write_bytes(bytes(2**21))
    assert str(refused.value) == f"cannot write {disk / 'folder'}: the disk is full"
    assert not list(disk.iterdir())


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_is_one_sentence_and_the_file_before_is_whole(small_disk, before):
    folder = small_disk(2**20)
    text, weights = folder / "summary.json", folder / "checkpoint.pth"
    if before:
        write_whole(text, "small")
        save_atomically({"weights": torch.ones(3)}, weights)
    kept = "; the {} from before is whole" if before else ""
    with pytest.raises(OSError) as refused:
        write_whole(text, "large" * 2**20)
    assert str(refused.value) == f"cannot write {text}: the disk is full{kept.format(text.name)}"
    with pytest.raises(OSError) as refused:  # PyTorch says: unexpected pos 576 vs 534
        save_atomically({"weights": torch.ones(2**20)}, weights)
    assert str(refused.value) == f"cannot write {weights}: the disk is full{kept.format(weights.name)}"
    assert len(list(folder.iterdir())) == (2 if before else 0)
    if before:
        assert text.read_text() == "small" and torch.load(weights)["weights"].sum() == 3


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="^of another kind$"), replacing(tmp_path / "file"):
        raise RuntimeError("of another kind")
