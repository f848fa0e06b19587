"""`tcomp vgpu run`: a report, findings as exit code 1, refusals in one message."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.cli.support import Tcomp, refused

PTX = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry scale(.param .u64 x, .param .f32 by, .param .u32 n) {
  .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [x]; ld.param.f32 %f1, [by]; ld.param.u32 %r1, [n];
  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x; mad.lo.u32 %r2, %r2, %r3, %r4;
  setp.ge.u32 %p1, %r2, %r1; @%p1 bra END;
  mul.wide.u32 %rd2, %r2, 4; add.s64 %rd1, %rd1, %rd2;
  ld.global.f32 %f2, [%rd1]; mul.rn.f32 %f2, %f2, %f1; st.global.f32 [%rd1], %f2;
  END: ret;
}
"""
RUN = ["vgpu", "run", "k.ptx"]


@pytest.fixture(autouse=True)
def file(own_folders: None) -> None:
    Path("k.ptx").write_text(PTX)
    Path("k.cu").write_text('extern "C" __global__ void k() {}\n')


def test_a_report_and_the_first_elements(tcomp: Tcomp) -> None:
    found = tcomp(*RUN, "f32[100]=arange", "2.0", "100", "--grid", "4", "--cluster", "2")
    assert found.code == 0, found
    assert "findings: none" in found.out and "[0. 2. 4. 6.]" in found.out


def test_findings_end_with_1(tcomp: Tcomp) -> None:
    found = tcomp(*RUN, "f32[100]=arange", "2.0", "101", "--grid", "4")
    assert found.code == 1 and "out of bounds global" in found.out and "PTX line 11: ld.global.f32" in found.out


@pytest.mark.parametrize(("arguments", "texts"), [
    (["vgpu", "run", "k.cu"], ["k.cu: PTX line 1", "this is no PTX; nvcc -ptx"]),
    ([*RUN, "2.0"], ["takes 3 arguments, 1 were given", "x: u64, by: f32, n: u32"]),
    ([*RUN, "f32[4]=zeros", "1.0", "4", "--cluster", "2"], ["no whole number of clusters"]),
    ([*RUN, "f32[4]=zeros", "1.0", "4", "--cluster", "x"], ["--cluster x: not a size"]),
])  # fmt: skip
def test_refusals(tcomp: Tcomp, arguments: list[str], texts: list[str]) -> None:
    found = tcomp(*arguments)
    assert found.code == 2 and all(t in found.error for t in texts), found


@pytest.mark.parametrize("argument", ["f8[4]=random", f"f32[{'9' * 5000}]=zeros", "9" * 5000])
def test_arguments_that_are_none(tcomp: Tcomp, argument: str) -> None:
    refused(tcomp(*RUN, argument, "2.0", "100"), "is not an argument", "write a number or f32[1024]=random")


def test_files_that_hold_no_array(tcomp: Tcomp) -> None:
    np.save("array.npy", np.arange(100, dtype=np.float32))
    np.save("text.npy", np.array(["a"]))
    np.save("pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("several.npz", a=np.arange(3))
    Path("empty.npy").write_bytes(b"")
    Path("cut.npy").write_bytes(Path("array.npy").read_bytes()[:90])
    for name in ("text.npy", "pickle.npy", "several.npz", "empty.npy", "cut.npy", "k.ptx", "missing.npy"):
        refused(tcomp(*RUN, f"f32[1]={name}", "2.0", "1"), f"{name}: cannot read an array", "numpy.save")
    found = tcomp(*RUN, "f32[100]=array.npy", "2.0", "100", "--grid", "4")
    assert found.code == 0 and "[0. 2. 4. 6.]" in found.out


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_long_run_shows_blocks_on_a_terminal_and_can_be_interrupted() -> None:
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "tcomp", *RUN, "f32[1]=zeros", "2.0", "1", "--grid", "99999999"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # (tests in the background of a shell do not)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True, preexec_fn=listens
    ) as running:
        os.close(terminal)
        shown = ""
        while not re.search(r"[1-9][0-9]*/99999999", shown):
            shown += os.read(screen, 4096).decode()
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the end of a terminal that nobody writes to any more
            while text := os.read(screen, 4096).decode():
                shown += text
        assert running.stdout is not None and running.stdout.read() == ""
    os.close(screen)
    assert running.returncode == 130 and "Traceback" not in shown
