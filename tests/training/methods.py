"""All methods, with settings that make every term active within one epoch."""

import importlib

import pytest

from tests.training.stored_labels import store_of

METHODS = {
    "LogitsKD": {},
    "FitNets": {},
    "CWD": {},
    "IFVD": {},
    "FreeKD": {"prompt_epochs": 1},
    "DCD": {"ramp": None},
    "DualSelfKD": {},
    "KD": {
        "terms": [
            {"name": "dcd", "ramp": None},
            {"name": "logits"},
            {"name": "ifvd", "weight": 1},
            {"name": "dual_self"},
        ]
    },
    "KD recipe": {},
    "SoftKD": {},
    "RKD": {},
    "CIRKD": {},
    "SKD": {},
    "DPRD": {"ramp": None},
    "ReCoKD": {"ramp": None},
}
# What other methods compute does not depend on labels or classes.
READ_LABELS = ("LogitsKD", "CWD", "IFVD", "DualSelfKD", "KD", "SoftKD", "CIRKD", "SKD", "ReCoKD")
# The recipe starts from fitted weights, which takes longer than the training.
FAST_ONES_FIRST = [pytest.param(name, marks=pytest.mark.slow) if name == "KD recipe" else name for name in METHODS]


def store_if_read(workspace, method, configuration="3d_fullres"):
    """Store soft labels for a method that reads them."""
    if method in ("SoftKD", "SAMKD"):
        store_of(workspace, configuration)


def trainer_class(method):
    name = f"nnUNetTrainer{method.split()[0]}"
    return getattr(importlib.import_module(f"nnunet_kd.trainers.{name}"), name)
