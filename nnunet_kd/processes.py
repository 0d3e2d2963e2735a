"""Processes: no more of them than there are cores, and none that outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import threading

# Variables of nnU-Net, and how many processes it starts where they are not set: to export segmentations and compute
# metrics, as validation does, and to load and augment batches. It counts the cores of the machine for the second only.
USUAL_PROCESSES = {"nnUNet_def_n_proc": 8, "nnUNet_n_proc_DA": min(12, os.cpu_count() or 1)}


def usable_cores() -> int:
    """Cores this process may use; a job of a cluster has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_limits() -> dict[str, str]:
    """Variables of nnU-Net by which it starts no more processes than there are cores.

    Returns:
        Those that are not set, and without which it would start more.
    """
    cores = usable_cores()
    return {name: str(cores) for name, usual in USUAL_PROCESSES.items() if usual > cores and name not in os.environ}


def end_with_parent() -> None:
    """Initializer of a pool's processes: each ends with the one that started it, even where that was killed.

    Otherwise they would do what is queued, beside a second run, and then wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
