"""The study of study.md: real volumes, every method, several seeds, through ``nnunet_kd compare``.

    python -m benchmarks.study --raw nnUNet_raw --work WORK [--teachers FOLDER] [--parts tuning brats_r4 ...]

Preprocesses, trains the teachers that are missing, writes plans of the students, compares, keeps every case's metrics
in the folder runs/ beside this file, and writes ../study.md, ../study.png and the README's section from what is kept,
tables and sentences alike. It ends with an error where a sentence says what the kept runs do not show.
Stop it and start it again as you like, on another machine too: what is kept is not trained again. ``--raw`` holds
Dataset021_BraTSPatches (with its splits_final.json) and Dataset004_Hippocampus; ``--teachers`` holds results folders
of stock teachers of fold 0 by data set. Without both, the page is written again.

Defaults are decided in the part ``tuning``, on fold 1 of one data set with a teacher of that fold; the others report
fold 0. Only the length of the hippocampus schedule was set on a reported fold, by NoKD's curve.
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
    """Carry out what is missing of the parts, then write the page."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--raw", type=Path, help="nnUNet_raw")
    options.add_argument("--work", type=Path, help="folder for everything that is made")
    options.add_argument("--teachers", type=Path, help="results folders of stock teachers of fold 0")
    options.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=str(list(PARTS))
    )
    options.add_argument("--seeds", type=int, nargs="+", choices=SEEDS, default=SEEDS, help="default: all")
    options.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    chosen = options.parse_args()
    if (chosen.raw is None) != (chosen.work is None):
        options.error("--raw and --work go together")
    if chosen.raw is not None:
        for data in {PARTS[name].data: DATA[PARTS[name].data] for name in chosen.parts}.values():
            for folder in (chosen.raw, *([chosen.teachers] if chosen.teachers else [])):
                if not (folder / data.folder).is_dir():
                    options.error(f"there is no {folder / data.folder}")
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # with the command that runs
        workplace = Workplace(chosen.raw, chosen.work, chosen.teachers, chosen.device)
        for name in chosen.parts:
            workplace.measure_costs(name, Record(name))
        for seed in chosen.seeds:
            for name in (name for name in chosen.parts if seed in PARTS[name].seeds):
                workplace.compare(name, seed, Record(name))
                with suppress(StaleFindingError):  # which is said at the end
                    write_page()
    try:
        write_page()
    except StaleFindingError as error:
        sys.exit(f"{options.prog}: error: {error}")


if __name__ == "__main__":
    main()
