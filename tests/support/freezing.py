"""Freezes a process for certain: SIGSTOP reaches its threads one by one, and a busy one may go on for a moment."""

import os
import signal
import time
from pathlib import Path

FREEZE_TIMEOUT_S = 10.0


def freeze(pid: int) -> None:
    """Return when every thread of the process has stopped; takes a few milliseconds."""
    os.kill(pid, signal.SIGSTOP)
    end_s = time.monotonic() + FREEZE_TIMEOUT_S
    while not all(_is_stopped(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < end_s, f"process {pid} does not stop"
        time.sleep(0.001)


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
