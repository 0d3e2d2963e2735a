"""Untrusted JSON within limits. The runtime holds this, because it also exists without the other rooms."""

from nnunet_kd.runtime.files.limited_json import DEEPEST, DIGITS, LARGEST, read_limited

__all__ = ["DEEPEST", "DIGITS", "LARGEST", "read_limited"]
