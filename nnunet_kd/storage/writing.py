"""Files and folders that are complete or absent. The runtime holds this, because it also exists without other rooms."""

from nnunet_kd.runtime.files.writing import (
    DiskFullError,
    UnwritableError,
    check_writable,
    check_writable_folder,
    flush_folder,
    is_full,
    naming_full_disk,
    new_folder,
    not_written,
    put_in_place,
    replacing,
    scratch_folder,
    write_whole,
)

__all__ = [
    "DiskFullError",
    "UnwritableError",
    "check_writable",
    "check_writable_folder",
    "flush_folder",
    "is_full",
    "naming_full_disk",
    "new_folder",
    "not_written",
    "put_in_place",
    "replacing",
    "scratch_folder",
    "write_whole",
]
