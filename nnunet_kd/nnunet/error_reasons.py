"""One-line versions of errors. The runtime holds them, because it also exists without the other rooms."""

from nnunet_kd.runtime.files.error_reasons import first_line, reason

__all__ = ["first_line", "reason"]
