"""Raw images as nnU-Net names them: ``CASE_0000ENDING`` and so on, one file per channel or one with all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_kd.storage.writing import naming_full_disk

Files = Mapping[int, Path]  # number of the channel -> file

# What macOS, Windows, Linux and network disks leave in folders: beginnings, or whole names in small letters.
_BEGINNINGS = ("._", ".nfs", ".fuse_hidden", ".trash", ".spotlight", ".fseventsd")
_NAMES = frozenset((".ds_store", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "@eadir"))


def is_left_over(name: str) -> bool:
    """Whether a system, not a person, left a file or folder: ``._case_0000.nii.gz``, ``.DS_Store``, ``Thumbs.db``."""
    small = name.lower()
    return small in _NAMES or small.startswith(_BEGINNINGS)


def channel_of(name: str, ending: str) -> tuple[str, int | None]:
    """Split a file name into case and channel; ``None`` where it names no channel."""
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


def link_cases(
    folder: Path, cases: Mapping[str, Sequence[Path]], name_of: Callable[[str, int], str] | None = None
) -> Path:
    """Fill a folder with links to the files of these cases, and remove the links to others.

    The file beside a 3-D TIFF file in which nnU-Net keeps its voxel size is linked too, as ``CASE.json``.

    Args:
        folder: Is made where it is not there.
        cases: Case -> its files.
        name_of: The name of a link by case and number of the file; by default that of the file.

    Raises:
        ValueError: For a file that is not there, or is a link to nothing.
        DiskFullError: Where there is no space for a link.
    """
    links: dict[str, Path] = {}
    for case, files in cases.items():
        for number, path in enumerate(files):
            if not path.is_file():
                where = f", to which {path} leads" if path.is_symlink() else ""
                raise ValueError(f"case {case}: there is no {path.resolve()}{where}")
            name = path.name if name_of is None else name_of(case, number)
            links[name] = path
            is_label = Path(name).stem == case
            voxel_size = path.with_name(f"{path.stem if is_label else path.stem[:-5]}.json")
            if path.suffix.lower() in (".tif", ".tiff") and voxel_size.is_file():
                links[f"{case}.json"] = voxel_size
    folder.mkdir(parents=True, exist_ok=True)
    for path in list(folder.iterdir()):
        if path.is_symlink():
            path.unlink()
    for name, path in links.items():
        with naming_full_disk(folder / name):
            (folder / name).symlink_to(path.resolve())
    return folder
