"""A process that gives memory back, seen from the C library's own figures."""

import ctypes
import json
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, json, re, sys, threading
from armature.runtime import allocator

if "settled" in sys.argv:
    allocator.return_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

class Figures(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "arena ord smb own_blocks own usm fsm used free keep".split()]

libc.mallinfo2.restype = Figures
libc.free(libc.malloc(8 << 20))  # the lesson from which glibc takes to keep blocks of this size
before = libc.mallinfo2().own
block = libc.malloc(8 << 20)
own = libc.mallinfo2().own - before
libc.free(block)

done = threading.Barrier(9)
def use():
    libc.free(libc.malloc(1000))
    done.wait()
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads:
    thread.start()
done.wait()
libc.fopen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
out = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, out)
libc.fclose(out)
print(json.dumps({"own_mapping": own >= 8 << 20, "heaps": open(sys.argv[1]).read().count("<heap nr")}))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc")
def test_large_blocks_are_returned_and_threads_share_heaps(tmp_path_factory: pytest.TempPathFactory) -> None:
    def figures(*words: str) -> dict[str, int]:
        report = str(tmp_path_factory.mktemp("heaps") / "report.xml")
        command = [sys.executable, "-c", SCRIPT, report, *words]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert figures("settled") == {"own_mapping": True, "heaps": 2}
    usual = figures()
    assert not usual["own_mapping"]
    assert usual["heaps"] > 2
