"""Raw images under nnU-Net's names: the rules, which the runtime holds, and folders of links to images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_kd.runtime.files.image_names import channel_of, images_by_case, in_order, is_left_over, strangers
from nnunet_kd.storage.writing import naming_full_disk

__all__ = ["channel_of", "images_by_case", "in_order", "is_left_over", "link_cases", "strangers"]


def link_cases(
    folder: Path, cases: Mapping[str, Sequence[Path]], name_of: Callable[[str, int], str] | None = None
) -> Path:
    """Fill a folder with links to the files of these cases, and remove all other links from it.

    The JSON file in which nnU-Net keeps the voxel size of a 3-D TIFF file is linked too, as ``CASE.json``.

    Args:
        folder: The folder, which is created if it does not exist.
        cases: The files of every case.
        name_of: A function of the case and the position of the file that returns the name of the link; by default the
            link has the name of the file.

    Raises:
        ValueError: If a file does not exist, or is a broken link.
        DiskFullError: If there is no space for a link.
    """
    links: dict[str, Path] = {}
    for case, files in cases.items():
        for number, path in enumerate(files):
            if not path.is_file():
                where = f", to which {path} links" if path.is_symlink() else ""
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
