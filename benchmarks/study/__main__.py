"""Run the study of study.md: every method on real volumes with several seeds, through ``nnunet_kd compare``.

    python -m benchmarks.study --raw nnUNet_raw --work WORK [--teachers FOLDER] [--parts tuning brats_r4 ...]

The command preprocesses the data, trains missing teachers, writes the students' plans, compares the methods, and keeps
the metrics of every case in the folder runs/ beside this file. From these runs it writes the tables and sentences of
../study.md, ../study.png, and the README's section and picture, and fails if the runs do not show what a sentence says.
It can be stopped and started again at any time, on another machine too: kept runs are not trained again. ``--raw``
holds Dataset021_BraTSPatches (with its splits_final.json) and Dataset004_Hippocampus; ``--teachers`` holds results
folders of stock teachers of fold 0 by data set. Without ``--raw`` and ``--work`` it only writes the page again.

Defaults are chosen in the part ``tuning``, on fold 1 of one data set with a teacher of that fold; the other parts
report fold 0. Only the length of the hippocampus schedule was set on a reported fold, by NoKD's curve.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.study.figures import StaleFindingError
from benchmarks.study.page import write_page
from benchmarks.study.parts import DATA, PARTS, SEEDS
from benchmarks.study.record import Record
from benchmarks.study.workplace import Workplace


def main() -> None:
    """Carry out the missing runs of the chosen parts, then write the page."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--raw", type=Path, help="nnU-Net's folder nnUNet_raw")
    options.add_argument("--work", type=Path, help="folder for plans, preprocessed data and results")
    options.add_argument("--teachers", type=Path, help="results folders of stock teachers of fold 0")
    options.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"parts to run; default: all of {', '.join(PARTS)}",
    )
    options.add_argument(
        "--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="seeds to run; default: all"
    )
    options.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    chosen = options.parse_args()
    if (chosen.raw is None) != (chosen.work is None):
        options.error("--raw and --work must be given together")
    if chosen.raw is not None:
        for data in {PARTS[name].data: DATA[PARTS[name].data] for name in chosen.parts}.values():
            for folder in (chosen.raw, *([chosen.teachers] if chosen.teachers else [])):
                if not (folder / data.folder).is_dir():
                    options.error(f"the folder {folder / data.folder} does not exist")
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the running command too
        workplace = Workplace(chosen.raw, chosen.work, chosen.teachers, chosen.device)
        for name in chosen.parts:
            workplace.measure_costs(name, Record(name))
        for seed in chosen.seeds:
            for name in (name for name in chosen.parts if seed in PARTS[name].seeds):
                workplace.compare(name, seed, Record(name))
                with suppress(StaleFindingError):  # reported at the end
                    write_page()
    try:
        write_page()
    except StaleFindingError as error:
        sys.exit(f"{options.prog}: error: {error}")


if __name__ == "__main__":
    main()
