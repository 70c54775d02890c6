"""What a process has used of the processors."""

import time


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, of threads that have ended too."""
    # Linux makes a process's clock id of its number: see clock_getcpuclockid(3) and CPUCLOCK_SCHED in the kernel.
    return time.clock_gettime((~pid << 3) | 2)
