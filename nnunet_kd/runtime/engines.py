"""Run an ONNX network on the CPU with ONNX Runtime or OpenVINO, through one interface."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files.error_reasons import reason

# Maps patches to logits: float32 (B, channels, *patch) -> (B, heads, *patch).
Engine = Callable[[np.ndarray], np.ndarray]

DISTRIBUTION = __name__.partition(".")[0]  # nnunet_kd or nnunet_kd_runtime

ENGINES = ("openvino", "onnxruntime")  # the faster one first


def available_threads() -> int:
    """Return the number of cores that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_engine(name: str) -> str:
    """Return the engine to use; ``"auto"`` chooses the fastest one that is installed.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If the engine is not installed; for ``"auto"``, if none is.
    """
    if name not in (*ENGINES, "auto"):
        raise ValueError(f"an engine is one of auto, {', '.join(ENGINES)}, got {name!r}")
    installed = [engine for engine in ENGINES if importlib.util.find_spec(engine) is not None]
    if name == "auto" and installed:
        return installed[0]
    if name not in installed:
        package = "onnx" if name in ("auto", "onnxruntime") else name
        missing = "no engine is installed" if name == "auto" else f"{name} is not installed"
        raise ImportError(f"{missing}: pip install '{DISTRIBUTION}[{package}]'")
    return name


def open_engine(name: str, file: Path, shape: Sequence[int] | None, threads: int, bf16: bool = False) -> Engine:
    """Load a network into an engine.

    Args:
        name: One of :data:`ENGINES`.
        file: The ONNX file.
        shape: The shape ``(B, channels, *patch)`` of every call, for which the engine can optimise; ``None`` if calls
            differ.
        threads: The number of CPU threads.
        bf16: Compute in bfloat16.

    Raises:
        ValueError: If the engine cannot read the file, or the engine or the processor does not compute in bfloat16.
    """
    if bf16:
        _check_bf16(name)
    try:
        return _OPEN[name](file, shape, threads, bf16)
    except Exception as error:  # each engine has exceptions of its own
        raise ValueError(f"{name} cannot read {file}: {reason(error)}") from error


def _check_bf16(name: str) -> None:
    if name != "openvino":
        raise ValueError(f"{name} does not compute in bfloat16: choose openvino, or leave out --bf16")
    if "BF16" not in _import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor does not compute in bfloat16: leave out --bf16")


def _onnxruntime(file: Path, shape: Sequence[int] | None, threads: int, bf16: bool) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Pass the content: ONNX Runtime accepts only paths in UTF-8.
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(patches: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(None, {"image": patches})[0]
        return logits

    return run


def _openvino(file: Path, shape: Sequence[int] | None, threads: int, bf16: bool) -> Engine:
    core = _import_openvino().Core()
    network = core.read_model(file.read_bytes())
    if shape is not None:
        network.reshape(list(shape))
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # without a hint, the processor decides
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()

    def run(patches: np.ndarray) -> np.ndarray:
        request.infer({0: patches})
        logits: np.ndarray = request.get_output_tensor(0).data
        return logits

    return run


def _import_openvino() -> Any:
    """Import OpenVINO without its converter of models.

    The converter is not needed, takes half of the import, and reports over the network that OpenVINO was imported.
    OpenVINO does without it where it cannot be imported, which is so here as long as its entry is ``None``.
    """
    converter = "openvino.tools.ovc"
    is_new = "openvino" not in sys.modules
    if is_new:
        sys.modules[converter] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if is_new:
            del sys.modules[converter]


_OPEN: dict[str, Callable[[Path, Sequence[int] | None, int, bool], Engine]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
