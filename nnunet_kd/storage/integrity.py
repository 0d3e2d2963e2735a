"""Checks of files. The runtime holds them, because it also exists without the other rooms."""

from nnunet_kd.runtime.files.integrity import (
    check_name,
    check_whole,
    file_digest,
    is_compressed,
    is_whole,
    text_digest,
)

__all__ = ["check_name", "check_whole", "file_digest", "is_compressed", "is_whole", "text_digest"]
