"""Locks that another process holds."""

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
    """Let another process hold the lock of a file, and yield the number of that process."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.kill()  # the system releases its lock
        process.communicate()
