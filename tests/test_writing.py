"""A file is as it was before or complete, whatever ends its writing."""

import os
import time

import pytest
import torch

from nnunet_kd.training.checkpoint import save_atomically
from nnunet_kd.writing import replacing, write_whole


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
