"""The C allocator of a process that lives long and sees peaks: what a peak has taken goes back to the system.

glibc gives every thread a heap of its own and shrinks none of them while something lies at its end; it also learns
from large blocks to keep more and more of what is freed. gRPC's threads serve whatever call comes next, so each heap
keeps the peak of all. Not for processes that compute: they would ask the system anew for every tensor.
"""

import ctypes
import logging

log = logging.getLogger(__name__)

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

HEAPS = 2
"""One for the thread that runs Python, which allocates most, and one for all of gRPC's."""
OWN_MAPPING_BYTES = 1 << 20
"""Blocks from this size on are returned as soon as they are freed: long prompts, bodies, answers."""
KEPT_BYTES = 4 << 20
"""What may lie free at the end of the main heap."""


def return_memory() -> None:
    """Have freed memory returned; does nothing where the C library is not glibc. Call it before threads start."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        log.debug("this C library has no mallopt")
        return
    for parameter, value in ((_ARENA_MAX, HEAPS), (_MMAP_THRESHOLD, OWN_MAPPING_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES)):
        mallopt(parameter, value)
