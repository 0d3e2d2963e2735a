"""Time what the start-up file adds to every start of the interpreter.

    python benchmarks/start_up.py [--repeats 60]

The script starts Python with a temporary site folder, alternately one with ``nnunet_kd.pth`` and one without.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from timing import medians

CODE = "import site; site.addsitedir({folder!r})"


def main() -> None:
    """Print both medians and their ratio."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=60)
    chosen = options.parse_args()
    installed = Path(sysconfig.get_path("purelib")) / "nnunet_kd.pth"
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("with", "without"):
            (Path(scratch) / name).mkdir()
        shutil.copy(installed, Path(scratch) / "with")

        def start(name: str) -> object:
            code = CODE.format(folder=str(Path(scratch) / name))
            return subprocess.run([sys.executable, "-S", "-c", code], check=True)

        seconds = medians({name: lambda name=name: start(name) for name in ("with", "without")}, chosen.repeats)
    print(
        f"interpreter start: {1000 * seconds['with']:.2f} ms with the file, {1000 * seconds['without']:.2f} ms without,"
        f" ratio {seconds['with'] / seconds['without']:.3f}"
    )


if __name__ == "__main__":
    main()
