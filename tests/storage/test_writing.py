"""A file is either unchanged or complete, however its writing ends."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from nnunet_kd.storage.writing import (
    DiskFullError,
    UnwritableError,
    check_writable,
    flush_folder,
    new_folder,
    replacing,
    write_whole,
)
from nnunet_kd.training.checkpoint import save_atomically
from tests.killing import is_alive


def test_a_file_is_replaced_only_at_the_end(tmp_path):
    path = tmp_path / "folder" / "file.json"
    write_whole(path, "first")
    with pytest.raises(KeyboardInterrupt), replacing(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() == "first"
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
    write_whole(path, "second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def unfinished_name(folder, name):
    """Return the temporary name of a file that is being written."""
    with replacing(folder / name) as unfinished:
        unfinished.touch()
    return unfinished.name


def test_leftovers_of_another_machine_are_removed_after_an_hour(tmp_path):
    path = tmp_path / "checkpoint[0].pth"
    old, young, other = (
        tmp_path / f"{unfinished_name(tmp_path, name)[:20]}.elsewhere.{number}"
        for number, name in enumerate((path.name, path.name, "checkpoint0.pth"))
    )
    path.unlink()
    (tmp_path / "checkpoint0.pth").unlink()
    for leftover in (old, young, other):
        leftover.touch()
    long_ago = time.time() - 3601
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    write_whole(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, young, other])


def test_leftovers_of_this_machine_are_removed_at_once(tmp_path):
    dead = subprocess.Popen(["true"])
    while is_alive(dead.pid):  # nobody waits for it
        time.sleep(0.01)
    path, folder = tmp_path / "file.json", tmp_path / "folder"
    kept = []
    for target in (path, folder):
        begin = unfinished_name(tmp_path, target.name).rpartition(".")[0]
        target.unlink()
        for name in (f"{begin}.{dead.pid}", f"{begin}.{os.getppid()}"):
            (tmp_path / name).mkdir() if target == folder else (tmp_path / name).touch()
        kept.append(tmp_path / f"{begin}.{os.getppid()}")
    kept.append(tmp_path / f"{unfinished_name(tmp_path, 'folder2').rpartition('.')[0]}.{dead.pid}")
    (tmp_path / "folder2").unlink()
    kept[-1].touch()
    write_whole(path, "whole")
    with new_folder(folder) as unfinished:
        (unfinished / "file").touch()
    assert sorted(tmp_path.iterdir()) == sorted([path, folder, *kept])
    dead.wait()


@pytest.mark.parametrize("name", ["a" * 255, "\N{GREEK SMALL LETTER ALPHA}" * 127])
def test_the_longest_names_that_a_disk_allows(tmp_path, name):
    write_whole(tmp_path / name, "whole")
    assert (tmp_path / name).read_text() == "whole"
    (tmp_path / name).unlink()
    with new_folder(tmp_path / name) as unfinished:
        assert len(os.fsencode(unfinished.name)) <= 35
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_read_only_folder_is_refused(tmp_path, read_only):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    disk = read_only(tmp_path / "there")
    advice = f"you may not write to the folder {disk}. Choose another folder, or change its permissions"
    for path in (disk / "x.json", disk / "new" / "x", disk / "file"):
        with pytest.raises(UnwritableError) as refused:
            write_whole(path, "")
        assert str(refused.value) == f"cannot write {path}: {advice}"
    with pytest.raises(UnwritableError) as refused, new_folder(disk / "new"):
        pass
    assert str(refused.value) == f"cannot write {disk / 'new'}: {advice}"
    assert [path.name for path in disk.iterdir()] == ["file"]


def test_a_file_where_a_folder_should_be_and_a_folder_where_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableError, match=rf"^cannot write .*/file/x/y: {tmp_path}/file is not a folder$"):
        write_whole(tmp_path / "file" / "x" / "y", "")
    with pytest.raises(UnwritableError, match=rf"^cannot write {tmp_path}: it is a folder$"):
        write_whole(tmp_path, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="rights are those of a process that is forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_folder_of_somebody_else():
    """The test runs as a user other than root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        child = os.fork()
        if child == 0:
            try:
                if os.getuid() == 0:
                    os.setuid(65534)
                check_writable(Path(name) / "file")
            except UnwritableError:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        Path(name).chmod(0o755)


def test_a_folder_is_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "folder"
    with pytest.raises(KeyboardInterrupt), new_folder(path) as unfinished:
        (unfinished / "half").touch()
        assert unfinished.parent == path.parent and unfinished.name.startswith(".unfinished_")
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir())
    with new_folder(path) as unfinished:
        (unfinished / "whole").touch()
    assert [entry.name for entry in path.iterdir()] == ["whole"] and list(path.parent.iterdir()) == [path]
    with pytest.raises(FileExistsError, match="folder already exists"), new_folder(path):
        pass
    with pytest.raises(FileExistsError), new_folder(path.parent / "other") as unfinished:
        (path.parent / "other").mkdir()  # by another process
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["folder", "other"]


def test_every_file_of_a_folder_is_flushed(tmp_path, monkeypatch):
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
def test_a_full_disk_is_one_sentence_and_the_previous_file_is_complete(small_disk, before):
    folder = small_disk(2**20)
    text, weights = folder / "summary.json", folder / "checkpoint.pth"
    if before:
        write_whole(text, "small")
        save_atomically({"weights": torch.ones(3)}, weights)
    kept = "; the previous {} is still complete" if before else ""
    with pytest.raises(OSError) as refused:
        write_whole(text, "large" * 2**20)
    assert str(refused.value) == f"cannot write {text}: the disk is full{kept.format(text.name)}"
    with pytest.raises(OSError) as refused:  # PyTorch says: unexpected pos 576 vs 534
        save_atomically({"weights": torch.ones(2**20)}, weights)
    assert str(refused.value) == f"cannot write {weights}: the disk is full{kept.format(weights.name)}"
    assert len(list(folder.iterdir())) == (2 if before else 0)
    if before:
        assert text.read_text() == "small" and torch.load(weights)["weights"].sum() == 3


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="^of another kind$"), replacing(tmp_path / "file"):
        raise RuntimeError("of another kind")
