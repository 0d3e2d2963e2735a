"""Plans of nnU-Net for a made data set, as small as its plans manager allows."""

from typing import Any

IMAGE = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LOGITS = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
CT = {"mean": 40.0, "std": 120.0, "percentile_00_5": -500.0, "percentile_99_5": 300.0}


def make_plans(
    spacing: list[float],
    schemes: list[str],
    masks: list[bool] | None = None,
    transpose: tuple[int, int, int] = (0, 1, 2),
    reader: str = "SimpleITKIO",
    **changes: Any,
) -> dict[str, Any]:
    """Return plans with one configuration, ``made``.

    Args:
        spacing: The voxel size of the model in mm, in the order of its axes.
        schemes: The normalisation of every channel.
        masks: For every channel, whether the normalisation considers the nonzero mask only.
        transpose: ``transpose_forward``.
        reader: The reader of images.
        **changes: Other entries of the configuration.
    """
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * len(spacing),
        "spacing": spacing,
        "normalization_schemes": schemes,
        "use_mask_for_norm": masks or [False] * len(schemes),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": IMAGE,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": LOGITS,
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
        **changes,
    }
    backward = [transpose.index(axis) for axis in range(3)]
    return {
        "dataset_name": "Dataset999_Made",
        "plans_name": "nnUNetPlans",
        "transpose_forward": list(transpose),
        "transpose_backward": backward,
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): CT for channel in range(len(schemes))},
        "configurations": {"made": configuration},
    }


def make_dataset_json(channels: int, labels: dict[str, Any], ending: str = ".nii.gz", **more: Any) -> dict[str, Any]:
    """Return the content of a ``dataset.json``."""
    names = {str(channel): f"channel {channel}" for channel in range(channels)}
    return {"channel_names": names, "labels": labels, "file_ending": ending, "numTraining": 1, **more}
