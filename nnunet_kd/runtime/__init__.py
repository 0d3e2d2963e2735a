"""Segment images with an exported model, without PyTorch and nnU-Net.

This package needs NumPy, SciPy, SimpleITK, and OpenVINO or ONNX Runtime. It imports nothing else of nnunet_kd, and is
also distributed by itself as ``nnunet_kd_runtime``.

    from nnunet_kd.runtime import Segmenter

    segmenter = Segmenter("student_onnx")
    labels = segmenter.segment_file("case_0000.nii.gz")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .segmenter import Segmenter

__all__ = ["Segmenter"]


def __getattr__(name: str) -> Any:
    """Import the segmenter when it is asked for: other rooms use the files of this one and need no NumPy."""
    if name == "Segmenter":
        from .segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
