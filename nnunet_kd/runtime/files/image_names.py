"""Raw images under nnU-Net's names, ``CASE_0000ENDING`` and so on: one file per channel, or one for all channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Files = Mapping[int, Path]  # channel number -> file

# Files that macOS, Windows, Linux and network disks leave in folders: prefixes, and whole names in lower case.
_BEGINNINGS = ("._", ".nfs", ".fuse_hidden", ".trash", ".spotlight", ".fseventsd")
_NAMES = frozenset((".ds_store", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "@eadir"))


def is_left_over(name: str) -> bool:
    """Return whether an operating system created a file or folder, such as ``._case_0000.nii.gz`` or ``Thumbs.db``."""
    small = name.lower()
    return small in _NAMES or small.startswith(_BEGINNINGS)


def channel_of(name: str, ending: str) -> tuple[str, int | None]:
    """Split a file name into its case and its channel; the channel is ``None`` if the name contains none."""
    stem = name[: -len(ending)] if name.endswith(ending) else ""
    if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal():
        return stem[:-5], int(stem[-4:])
    return stem, None


def images_by_case(folder: Path, ending: str) -> dict[str, Files]:
    """Return the image files of every case in a folder."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        name, number = channel_of(path.name, ending)
        if number is not None and not is_left_over(path.name):
            found.setdefault(name, {})[number] = path
    return {**found}


def strangers(folder: Path, ending: str) -> list[str]:
    """Return the names of the files in a folder that are neither images nor the ``CASE.json`` of an image."""
    beside = {f"{case}.json" for case in images_by_case(folder, ending)}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and channel_of(path.name, ending)[1] is None
        and not is_left_over(path.name)
        and path.name not in beside
    )


def in_order(cases: Mapping[str, Files], channels: int, folder: Path, ending: str) -> dict[str, list[Path]]:
    """Return the files of every case in the order of the channels.

    If every case consists of a single file, this file is assumed to hold all channels, as a colour picture does. The
    caller finds out when it reads the file.

    Args:
        cases: The files of every case.
        channels: The number of channels per case.
        folder: The folder that should hold the files, for messages.
        ending: The file ending.

    Raises:
        ValueError: If a case lacks a channel or has one too many; the message names the case.
    """
    count = 1 if all({*files} <= {0} for files in cases.values()) else channels
    for case, files in cases.items():
        for channel in range(count):
            if channel not in files:
                raise ValueError(f"case {case}: there is no {folder / f'{case}_{channel:04d}{ending}'}")
        if len(files) > count:
            raise ValueError(
                f"case {case}: {files[max(files)]} is channel {max(files)}, but the model reads {channels_of(count)}"
            )
    return {case: [files[channel] for channel in range(count)] for case, files in cases.items()}


def channels_of(count: int) -> str:
    """Return how many channels there are and the numbers of their files, in words."""
    return "one channel, 0000" if count == 1 else f"{count} channels, 0000 to {count - 1:04d}"
