"""Write ``benchmarks/gpu.md`` from the record of ``make gpu``.

python benchmarks/gpu_page.py [gpu.json] [-o benchmarks/gpu.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_kd.evaluation.table import Table
from nnunet_kd.storage.writing import write_whole

Check = Mapping[str, Any]
OUTCOMES = {True: "passed", False: "failed", None: "skipped"}


def page(record: Mapping[str, Any]) -> str:
    """Return the page of a record.

    Raises:
        ValueError: If the record is that of a dry run, which says nothing about a GPU.
    """
    if record["dry_run"]:
        raise ValueError("the record is that of a dry run: run make gpu on a machine with a GPU")
    checks: Sequence[Check] = record["checks"]
    counts = {outcome: sum(check["passed"] is outcome for check in checks) for outcome in OUTCOMES}
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "# On a GPU",
        "",
        f"`make gpu` on {record['date']}, on {record['gpu']} ({record['gpu_gib']:g} GiB, compute capability "
        f"{record['capability']}): {counts[True]} checks passed, {counts[False]} failed and {counts[None]} were "
        f"skipped, in {record['seconds']:.0f} s. Python {record['python']}, {versions}, CUDA {record['cuda']}, cuDNN "
        f"{record['cudnn']}, NCCL {record['nccl']}.",
        "",
        "This page is written by `benchmarks/gpu_page.py`. Errors are lengths of differences relative to the length of "
        "the reference.",
    ]
    for title, group in groups(checks).items():
        lines += ["", f"## {title[:1].upper()}{title[1:]}", "", _table(group).markdown()]
        reasons = dict.fromkeys(f"{check['case']}: {check['reason']}" for check in group if "reason" in check)
        lines += ["", *(f"- {reason}" for reason in reasons)] if reasons else []
    return "\n".join(lines) + "\n"


def groups(checks: Sequence[Check]) -> dict[str, list[dict[str, Any]]]:
    """Group the checks that differ in their case alone, in the order of the record."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        title, _, case = check["name"].partition(", ")
        grouped.setdefault(title, []).append({**check, "case": case or "all"})
    return grouped


def _table(group: Sequence[Check]) -> Table:
    names = list(dict.fromkeys(name for check in group for name in check["figures"]))
    rows = [
        [
            check["case"],
            OUTCOMES[check["passed"]],
            *(_shown(check["figures"].get(name)) for name in names),
            f"{check['seconds']:.1f}",
        ]
        for check in group
    ]
    return Table(["case", "outcome", *names, "seconds"], rows)


def _shown(value: float | int | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Read the arguments, and write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("record", type=Path, nargs="?", default=Path("gpu.json"))
    options.add_argument("-o", type=Path, default=Path(__file__).parent / "gpu.md")
    chosen = options.parse_args()
    write_whole(chosen.o, page(json.loads(chosen.record.read_text())))


if __name__ == "__main__":
    main()
