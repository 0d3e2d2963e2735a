"""Files that another process holds."""

import subprocess
import sys
from contextlib import contextmanager

HOLDER = """
import pathlib, sys, time
from nnunet_kd.storage.processes import FileLock
lock = FileLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(path):
    """Have another process hold a file, and give its number."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.kill()  # the system frees it
        process.communicate()
