"""Disks with little space left."""

import os
import re
from pathlib import Path

PAGE = 4096


def leave(disk: Path, free: int) -> None:
    """Fill a disk up to ``free`` bytes, replacing an earlier filling."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    state = os.statvfs(disk)
    filler.write_bytes(bytes(max(state.f_bavail * state.f_frsize - free, 0) // PAGE * PAGE))


def names_one_file(printed: str) -> bool:
    """Return whether a command's last line names the file that could not be written and the cause, only once."""
    last = printed.strip().splitlines()[-1]
    sentence = r"nnunet_kd: cannot write /\S+( completely)?: the disk (is full|was full, or is damaged)"
    sentence += r"(; .* is still complete|, /\S+ needs .* GiB)?"
    return re.fullmatch(sentence, last) is not None and "Traceback" not in printed
