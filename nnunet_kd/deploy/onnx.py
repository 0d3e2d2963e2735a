"""Export a student as ONNX: the network of each fold, compared with PyTorch, and the settings of the predictor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_kd.deploy.onnx_network import OPSET, check_network, export_network, to_half
from nnunet_kd.deploy.quantization import calibration_patches, quantize
from nnunet_kd.deploy.trained import TrainedModel, provenance
from nnunet_kd.nnunet.reading import read_json
from nnunet_kd.runtime.folder import ModelDescription, write_description
from nnunet_kd.runtime.plans import read_pipeline
from nnunet_kd.storage.writing import new_folder

PRECISIONS = ("fp32", "fp16", "int8")


def export_onnx(
    model: TrainedModel,
    path: Path,
    precision: str = "fp32",
    licence: str | None = None,
    measure: Callable[[Path], float] | None = None,
    say: Callable[[str], None] = lambda _: None,
    calibration: Path | None = None,
) -> ModelDescription:
    """Write the folder of an ONNX model.

    The batch size is dynamic. Spatial axes are dynamic too, in multiples of the network's total stride, if the network
    can be exported that way; otherwise they have the size of the patch.

    Args:
        model: The trained student.
        path: The folder to write; it is complete or absent.
        precision: The precision of the weights: ``"fp32"``; ``"fp16"``, half the size; or ``"int8"``, a quarter of the
            size, see :func:`nnunet_kd.deploy.quantization.quantize`.
        licence: The licence to note in the provenance.
        measure: A function that returns the mean Dice of the model in a folder; called for fp32 and for ``precision``.
        say: A function that is called with one line about each step.
        calibration: A folder of images like those to segment, best of the training, from which ``"int8"`` takes the
            ranges of its layers.

    Raises:
        FileExistsError: If ``path`` exists.
        NotImplementedError: If the model is the second stage of a cascade, or ONNX cannot express its network.
        ValueError: If the logits of ONNX differ from those of PyTorch, or the plans name a reader, a normalisation or
            a resampling that is not nnU-Net's.
        ImportError: If onnx, onnxscript or onnxruntime is missing.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "int8" and calibration is None:
        raise ValueError(
            "int8 needs images to calibrate its layers: give a folder of training images with --calibration"
        )
    plans = PlansManager(model.experiment.plans)
    configuration = plans.get_configuration(model.experiment.configuration)
    if not model.has_onnx_form:
        reason = f"{model.network_name} has no form in ONNX"
        if model.previous_stage is not None:
            reason = f"ONNX models take no segmentations by {model.previous_stage}, which this one needs"
        raise NotImplementedError(f"{reason}. {model.other_way()}")
    experiment = model.experiment
    pipeline = read_pipeline(experiment.plans, experiment.dataset_json, experiment.configuration, model.folder)
    _require_packages()
    patch = [int(size) for size in configuration.patch_size]
    patches = [] if calibration is None else calibration_patches(calibration, pipeline, patch)
    strides = configuration.network_arch_init_kwargs.get("strides")
    multiples = None if strides is None else [int(n) for n in np.prod(strides, axis=0)]
    channels = determine_num_input_channels(plans, configuration, model.experiment.dataset_json)
    if path.exists():
        raise FileExistsError(f"{path} already exists: remove it, or give another path with -o")
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
            multiples = export_network(network, channels, patch, multiples, file)
            differences.append(check_network(network, file, channels, patch, multiples, "fp32"))
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
                if precision == "fp16":
                    to_half(folder / name)
                else:
                    quantize(folder / name, patches)
                differences.append(
                    check_network(model.network(fold), folder / name, channels, patch, multiples, precision)
                )
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
