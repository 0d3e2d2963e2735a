import pytest
from nnunetv2.training.logging.nnunet_logger import LocalLogger


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Spare nnU-Net's plot of every epoch, which takes longer than the epochs here; the mark ``draws`` keeps it."""
    if "draws" not in request.keywords:
        monkeypatch.setattr(LocalLogger, "plot_progress_png", lambda *_: None)
