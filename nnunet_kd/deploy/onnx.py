"""A student as ONNX: the network of each fold, checked against PyTorch, and all its predictor needs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_kd.deploy.engines import open_engine
from nnunet_kd.deploy.folder import ModelDescription, write_description
from nnunet_kd.deploy.trained import TrainedModel, provenance
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.storage.writing import is_full, new_folder

OPSET = 18
PRECISIONS = ("fp32", "fp16", "int8")

# Largest absolute difference from PyTorch's logits, relative to their largest value, above which nothing is written.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": float("inf")}


def export_onnx(
    model: TrainedModel,
    path: Path,
    precision: str = "fp32",
    licence: str | None = None,
    measure: Callable[[Path], float] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ModelDescription:
    """Write the folder of an ONNX model.

    The batch is dynamic, and so are the spatial axes, in multiples of what the network halves them to, where the
    network can be exported so; else they are the patch's.

    Args:
        model: What was trained.
        path: Of the folder; whole or not there.
        precision: Of the weights: ``"fp32"``; ``"fp16"``: half the size; ``"int8"``: a quarter, dynamically quantized.
        licence: For the provenance.
        measure: Mean Dice of a folder's model on some cases; called for fp32 and for ``precision``.
        say: Told what is done.

    Raises:
        FileExistsError: Where ``path`` is there already.
        NotImplementedError: For the second stage of a cascade, or a network that ONNX cannot express.
        ValueError: Where ONNX gives other logits than PyTorch.
        ImportError: Where onnx, onnxscript or onnxruntime are missing.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"a precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
    plans = PlansManager(model.experiment.plans)
    configuration = plans.get_configuration(model.experiment.configuration)
    if not model.has_onnx_form:
        reason = f"{model.network_name} has no form in ONNX"
        if model.previous_stage is not None:
            reason = f"ONNX models take no segmentations by {model.previous_stage}, which this one needs"
        raise NotImplementedError(f"{reason}. {model.other_way()}")
    _require_packages()
    patch = [int(size) for size in configuration.patch_size]
    multiples: list[int] | None = [int(n) for n in np.prod(configuration.pool_op_kernel_sizes, axis=0)]
    channels = determine_num_input_channels(plans, configuration, model.experiment.dataset_json)
    if path.exists():
        raise FileExistsError(f"{path} is there already: remove it, or give another with -o")
    with new_folder(path) as folder:
        (folder / "plans.json").write_text(json.dumps(model.experiment.plans, indent=1))
        (folder / "dataset.json").write_text(json.dumps(model.experiment.dataset_json, indent=1))
        fingerprint = model.folder / "dataset_fingerprint.json"
        if fingerprint.is_file():
            (folder / fingerprint.name).write_text(json.dumps(read_json(fingerprint), indent=1))
        networks, differences = [], []
        for fold in model.weights:
            file = folder / f"fold_{fold}.onnx"
            network = model.network(fold)
            say(f"exporting fold {fold}")
            multiples = _convert(network, channels, patch, multiples, file)
            differences.append(_check(network, file, channels, patch, multiples, "fp32"))
            networks.append(file.name)

        def described(kind: str, difference: float, dice: dict[str, Any] | None) -> ModelDescription:
            return ModelDescription(
                configuration=model.experiment.configuration,
                patch_size=patch,
                mirroring=None if model.mirroring is None else list(model.mirroring),
                networks=networks,
                opset=OPSET,
                precision=kind,
                multiples=multiples,
                difference=difference,
                dice=dice,
                provenance=provenance(model, licence),
            )

        description = described("fp32", max(differences), None)
        write_description(folder, description)
        if measure is not None:
            say("predicting the cases in fp32")
            description = described("fp32", max(differences), {"fp32": measure(folder)})
        if precision != "fp32":
            say(f"converting to {precision}")
            for fold, name in zip(model.weights, networks, strict=True):
                _REDUCE[precision](folder / name)
                differences.append(_check(model.network(fold), folder / name, channels, patch, multiples, precision))
            dice = description.dice
            description = described(precision, max(differences), dice)
            write_description(folder, description)
            if measure is not None and dice is not None:
                say(f"predicting the cases in {precision}")
                description = described(precision, max(differences), {**dice, precision: measure(folder)})
        write_description(folder, description)
    return description


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'nnunet_kd[onnx]'") from error


def _convert(
    network: nn.Module, channels: int, patch: Sequence[int], multiples: list[int] | None, file: Path
) -> list[int] | None:
    """Write one network; returns the multiples of its spatial axes, ``None`` where they are the patch's alone."""
    if multiples is not None and not getattr(network, "resizes", False):
        try:
            _export(network, channels, patch, multiples, file)
            _check(network, file, channels, patch, multiples, "fp32")  # the exporter's word is not enough
            return multiples
        except Exception as error:  # whatever keeps a network from having free axes
            if is_full(error, file.parent):
                raise
            logging.getLogger(__name__).info("spatial axes are fixed: %s", error)
    _export(network, channels, patch, None, file)
    return None


def _export(
    network: nn.Module, channels: int, patch: Sequence[int], multiples: Sequence[int] | None, file: Path
) -> None:
    from torch.export import Dim

    axes: dict[int, Any] = {0: Dim("batch", min=1)}
    for axis, multiple in enumerate(multiples or ()):
        free = Dim(f"n{axis}", min=1)
        axes[2 + axis] = multiple * free if multiple > 1 else free
    example = torch.zeros(2, channels, *patch)  # a batch of one would be taken for a constant
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(axes,),
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=False)


@torch.inference_mode()
def _check(
    network: nn.Module, file: Path, channels: int, patch: Sequence[int], multiples: Sequence[int] | None, precision: str
) -> float:
    """Largest difference from PyTorch's logits, relative to their largest value, on batches and sizes of all kinds."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, *patch), (3, *patch)]
    if multiples is not None:
        shapes.append((1, *(size + 2 * multiple for size, multiple in zip(patch, multiples, strict=True))))
    engine = open_engine("onnxruntime", file, None, threads=torch.get_num_threads())
    worst = 0.0
    for batch, *size in shapes:
        image = torch.randn(batch, channels, *size, generator=generator)
        expected: Tensor = network(image)
        found = torch.from_numpy(engine(image.numpy()))
        if not found.isfinite().all():
            raise ValueError(f"{file.name} gives logits that are not finite")
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if not worst <= TOLERANCE[precision]:
        raise ValueError(
            f"{file.name} gives other logits than PyTorch: {worst:.2g} of the largest, {TOLERANCE[precision]:g} allowed"
        )
    return worst


def _to_half(file: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(file)), keep_io_types=True), str(file))


def _to_int8(file: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with contextlib.redirect_stdout(io.StringIO()):
        quantize_dynamic(onnx.load(str(file)), file, weight_type=QuantType.QUInt8)


_REDUCE: dict[str, Callable[[Path], None]] = {"fp16": _to_half, "int8": _to_int8}
