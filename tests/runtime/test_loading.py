"""Code is loaded wherever a process has memory left, however far apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes
import mmap
from dataclasses import replace
from pathlib import Path
from test_team import MACHINE, N, sum_kernel
from tcomp.runtime.cpu.single import SingleKernel

def hold(address, size):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000 | (0x100000 if address else 0)  # NORESERVE, FIXED_NOREPLACE
    libc.mmap(address, size, 0, flags, -1, 0)

libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mmap.restype = ctypes.c_void_p
GIB = 1 << 30
long = replace(sum_kernel(), phases=sum_kernel().phases * 40)  # its code fills pages, its constants are in one
for pages in (1, 2, 3, 5):
    ends = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in open("/proc/self/maps")]
    for (_, low), (high, _) in zip(ends, ends[1:]):
        if pages * mmap.PAGESIZE < high - low < 6 * GIB:
            hold(low, high - low - pages * mmap.PAGESIZE)  # of each gap so many pages are left
    hold(None, 5 * GIB // 2)
    with SingleKernel(long, MACHINE, 1, Path(r"CACHE")) as kernel:
        kernel.array("X")[...] = 0
        kernel.run()
        assert kernel.array("s") == N
print("loaded")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_objects_sections_are_near_each_other(tmp_path: Path) -> None:
    program = PROGRAM.replace("CACHE", str(tmp_path))
    here = Path(__file__).parent
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here)
    assert (found.returncode, found.stdout) == (0, "loaded\n"), found.stderr
