"""Runs a command that the kernel kills when the process that started it is gone, however it went.

    python -I -S die_with_parent.py PARENT_PID COMMAND [ARGUMENT...]

A program of its own, not imported: the kernel must be asked in the child, and running Python code between fork and exec
of a process with threads (gRPC's, for one) is unsafe. It replaces itself by the command, so the pid stays.

The kernel acts when the *thread* that started the child ends: start children from a thread that lives as long as the
process does.
"""

import ctypes
import os
import signal
import sys

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Never returns."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise SystemExit(f"can't tie {command[0]} to its parent: {os.strerror(ctypes.get_errno())}")
    # The parent may have died before the kernel was asked.
    if os.getppid() != parent_pid:
        raise SystemExit("the parent is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"can't run {command[0]}: {error.strerror}") from error


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
