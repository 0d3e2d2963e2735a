"""Untrusted archives do not fill the memory. Archives of whole models are tested with their installation."""

import zipfile

import pytest
import torch

from nnunet_kd.nnunet.trust.archives import check_stored


def test_compressed_weights_are_not_unpacked(tmp_path):
    """The file of a hundred KiB contains a hundred MiB of zeros."""
    path, bomb = tmp_path / "weights.pth", tmp_path / "bomb.pth"
    torch.save({"a": torch.zeros(25 * 2**20)}, path)
    check_stored(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as smaller:
        for entry in archive.infolist():
            smaller.writestr(entry.filename, archive.read(entry))
    assert bomb.stat().st_size < path.stat().st_size / 100
    assert torch.equal(torch.load(bomb)["a"], torch.load(path)["a"])  # PyTorch does unpack it
    with pytest.raises(ValueError, match=r"bomb\.pth: it is compressed"):
        check_stored(bomb)
