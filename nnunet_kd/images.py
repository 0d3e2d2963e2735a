"""Raw images as nnU-Net names them: ``CASE_0000ENDING`` and so on, a file a channel or one with all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_kd.writing import naming_full_disk

Files = Mapping[int, Path]  # number of the channel -> file

# What macOS, Windows, Linux and network disks leave in folders: beginnings, or whole names in small letters.
_BEGINNINGS = ("._", ".nfs", ".fuse_hidden", ".trash", ".spotlight", ".fseventsd")
_NAMES = frozenset((".ds_store", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "@eadir"))


def is_left_over(name: str) -> bool:
    """Whether a file or folder is none of a person's: ``._case_0000.nii.gz``, ``.DS_Store``, ``Thumbs.db``."""
    small = name.lower()
    return small in _NAMES or small.startswith(_BEGINNINGS)


def channel_of(name: str, ending: str) -> tuple[str, int | None]:
    """Case and channel of a file name; no channel where it is not named so."""
    stem = name[: -len(ending)] if name.endswith(ending) else ""
    if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal():
        return stem[:-5], int(stem[-4:])
    return stem, None


def images_by_case(folder: Path, ending: str) -> dict[str, Files]:
    """Files of every case in a folder; others than images are left out."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        name, number = channel_of(path.name, ending)
        if number is not None and not is_left_over(path.name):
            found.setdefault(name, {})[number] = path
    return {**found}


def strangers(folder: Path, ending: str) -> list[str]:
    """Names of the files in a folder that are no images by their names, nor ``CASE.json`` beside one."""
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
    """Files of every case by channel.

    Where every case is one file alone it is taken to hold all channels, as a colour picture does; who reads it sees
    whether it does.

    Args:
        cases: Their files.
        channels: How many a case has.
        folder: Where files are missed, for messages.
        ending: Of the files.

    Raises:
        ValueError: Naming a case with a missing or additional channel.
    """
    count = 1 if all({*files} <= {0} for files in cases.values()) else channels
    for case, files in cases.items():
        for channel in range(count):
            if channel not in files:
                raise ValueError(f"case {case}: there is no {folder / f'{case}_{channel:04d}{ending}'}")
        if len(files) > count:
            raise ValueError(f"case {case}: {files[max(files)]} is channel {max(files)}, there should be {count}")
    return {case: [files[channel] for channel in range(count)] for case, files in cases.items()}


def link_cases(folder: Path, cases: Mapping[str, Sequence[Path]]) -> Path:
    """Fill a folder with links to the files of these cases, and remove the links to others.

    ``CASE.json`` beside a file is linked too: nnU-Net keeps the voxel size of 3-D TIFF files there.

    Raises:
        ValueError: For a file that is not there, or is a link to nothing.
        DiskFullError: Where there is no space for a link.
    """
    for case, files in cases.items():
        for path in files:
            if not path.is_file():
                where = f", to which {path} leads" if path.is_symlink() else ""
                raise ValueError(f"case {case}: there is no {path.resolve()}{where}")
    folder.mkdir(parents=True, exist_ok=True)
    for path in list(folder.iterdir()):
        if path.is_symlink():
            path.unlink()
    for case, files in cases.items():
        for path in (*files, *{path.with_name(f"{case}.json") for path in files}):
            if path.is_file():
                with naming_full_disk(folder / path.name):
                    (folder / path.name).symlink_to(path.resolve())
    return folder
