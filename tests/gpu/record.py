"""The record of a run of the checks, as JSON."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nnunet_kd.storage.writing import write_whole

PACKAGES = ("nnunet_kd", "nnunetv2", "torch", "triton", "dynamic-network-architectures", "mamba-ssm")


class Record:
    """All checks of a run, with what they were run on.

    Args:
        fake: Whether this is a dry run.
    """

    def __init__(self, fake: bool) -> None:
        self.machine = describe_machine(fake)
        self.checks: list[dict[str, Any]] = []

    def add(
        self, name: str, passed: bool | None, figures: dict[str, Any], seconds: float, reason: str | None = None
    ) -> None:
        """Add a check.

        Args:
            name: The check.
            passed: Whether it passed; ``None`` if it was skipped.
            figures: What it measured.
            seconds: How long it took, fixtures included.
            reason: Why it was skipped, or the last line of its failure.
        """
        entry = {"name": name, "passed": passed, "seconds": round(seconds, 2), "figures": figures}
        self.checks.append(entry if reason is None else {**entry, "reason": reason})

    def write(self, path: Path) -> None:
        """Write the record."""
        seconds = round(sum(check["seconds"] for check in self.checks), 1)
        content = {**self.machine, "seconds": seconds, "checks": self.checks}
        write_whole(path, json.dumps(content, indent=1) + "\n")


def describe_machine(fake: bool) -> dict[str, Any]:
    """Return the names of the GPU and of what runs on it."""
    described: dict[str, Any] = {
        "dry_run": fake,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "gpu": None,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }
    if not fake and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        described.update(
            gpu=properties.name,
            gpus=torch.cuda.device_count(),
            gpu_gib=round(properties.total_memory / 2**30, 1),
            capability=f"{properties.major}.{properties.minor}",
            cudnn=torch.backends.cudnn.version(),
        )
        described["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return described


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
