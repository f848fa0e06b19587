"""What a loaded library takes of memory is given back, and the library goes on working."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tcomp.machine.cpu import detect
from tcomp.runtime.cpu import executor
from tcomp.runtime.cpu.launch_ceiling import empty_kernel
from tcomp.runtime.cpu.library_pages import release_pages
from tcomp.runtime.cpu.single import SingleKernel
from tests.reference.runs import built

PROGRAM = """
import llvmlite.binding as llvm
from tcomp.runtime.cpu.library_pages import release_pages

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def compiled():
    machine = llvm.Target.from_default_triple().create_target_machine()
    return machine.emit_object(llvm.parse_assembly("define i32 @f(i32 %x) {\\n ret i32 %x\\n}"))

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()
first = compiled()
before = resident()
released = release_pages(llvm.ffi.lib._name)
after = resident()
assert compiled() == first
print(before - after, released)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_given_back_and_come_again() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given_back, released = map(int, found.stdout.split())
    assert 10 << 20 < given_back <= released


def test_what_is_not_loaded_is_left_alone(tmp_path: Path) -> None:
    assert release_pages(str(tmp_path / "libother.so")) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_models_executor_keeps_little_of_the_compiler_and_that_of_one_op_goes_on_with_it(
    kernels: Path, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "release_pages", release_pages)  # (which other tests are without)
    with built("gpt2", {"L": 1, "H": 2, "C": 16}, 2, 16, 1, 1, objects):  # (at which the command line's tests are)
        assert resident_of_llvm() < 30 << 10
    with SingleKernel(empty_kernel(3), detect(), 1, tempfile.mkdtemp(dir=kernels)):
        assert resident_of_llvm() > 30 << 10


def resident_of_llvm() -> int:
    """KiB of LLVM's library that are in this process's memory."""
    mappings = re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text())
    llvm = [m for m in mappings if "libllvmlite" in m.partition("\n")[0]]
    assert llvm
    return sum(int(n) for m in llvm for n in re.findall(r"\nRss: +(\d+) kB", m))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_files_may_have_any_name(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.bin"
    with open(name, "wb+") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        with mmap.mmap(file.fileno(), 0):
            assert release_pages(str(tmp_path / "libother.so")) == 0
