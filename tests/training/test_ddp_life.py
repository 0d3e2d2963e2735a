"""A complete training in several processes: nnU-Net's own ``run_ddp`` with gloo on the CPU.

This is nnU-Net's ``-num_gpus`` without a GPU: every process of :func:`nnunetv2.run.run_training.run_ddp` loads, trains,
gathers, saves, resumes and validates. Four things that need CUDA are replaced: the NCCL backend,
``torch.cuda.set_device``, DDP's ``device_ids``, and the trainer's device with its gradient scaler. NCCL, AMP
under DDP, SyncBatchNorm (which KD-SAM's ResNet uses under DDP) and compiled networks in DDP are not exercised.
"""

import sys

import pytest
from torch import distributed as dist

from tests.training.several_processes import train_and_resume
from tests.training.unlabelled_cases import forget_labels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available() or sys.platform == "win32", reason="needs gloo"),
]


@pytest.mark.parametrize("counts", [(2, 4)], ids=str)
def test_trained_saved_once_resumed_with_other_processes_and_validated(workspace, counts):
    train_and_resume(workspace, counts, "nnUNetTrainerDCD", "dcd", {"ramp": None})


def test_without_labels(workspace):
    """One process finds the teacher's classes for all."""
    forget_labels(workspace)
    train_and_resume(workspace, (2, 1), "nnUNetTrainerSoftKD", "soft_labels", {"soft_labels": "model"})
    folder = workspace.results / "nnUNetTrainerSoftKD__shared__3d_fullres" / "fold_0"
    logs = "".join(path.read_text() for path in folder.glob("training_log*"))
    assert logs.count("the teacher's classes were found in 6 cases") == 1  # not again by the training that resumes
