"""Channels and labels have the names and the order that ``dataset.json`` says."""

import json

import numpy as np
import pytest

from tests.datasets.converting import convert, read

FILES = {  # of the channels in the papers' order
    "BraTS2021": [f"BraTS2021_00001/BraTS2021_00001_{modality}.nii" for modality in ("t1", "t1ce", "t2", "flair")],
    "BraTS2024GLI": [
        f"BraTS-GLI-00005-101/BraTS-GLI-00005-101-{modality}.nii.gz" for modality in ("t1n", "t1c", "t2w", "t2f")
    ],
    "ISLES2022": [
        f"rawdata/sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_{role}.nii.gz" for role in ("adc", "dwi")
    ],
}


CHANNELS = {
    "BraTS2021": ["T1", "T1ce", "T2", "FLAIR"],
    "BraTS2024GLI": ["T1n", "T1c", "T2w", "T2f"],
    "ISLES2022": ["ADC", "DWI", "FLAIR"],
    "FCD2023": ["T1w", "FLAIR"],
    "TCGALGG": ["pre-contrast", "FLAIR", "post-contrast"],
    "Synapse": ["CT"],  # which decides nnU-Net's normalisation
}


@pytest.mark.parametrize("name", FILES)
def test_every_channel_is_the_one_it_is_called(converted, tmp_path, name):
    root, made = converted
    folder = made[name].folder
    if name == "ISLES2022":  # where two of the images are not resampled
        folder = convert(name, root / name, tmp_path, grid="dwi").folder
    contents = [read(root / name / file)[0] for file in FILES[name]]
    case = FILES[name][-1].split("/")[0 if name != "ISLES2022" else 1].removeprefix("sub-")
    for channel, content in enumerate(contents):
        (path,) = folder.glob(f"images*/{case}_000{channel}.nii.gz")
        np.testing.assert_allclose(read(path)[0], content)
        assert sum(np.array_equal(content, other) for other in contents) == 1


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_have_their_names(converted, name):
    _, made = converted
    names = json.loads((made[name].folder / "dataset.json").read_text())["channel_names"]
    assert names == {str(number): channel for number, channel in enumerate(CHANNELS[name])}
