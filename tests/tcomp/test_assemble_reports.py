"""What is made of the assembler's words: log lines of several versions, cubin sections, messages, occupancy."""

from __future__ import annotations

import pytest

from tcomp.codegen.nvptx.assembly.cubin import static_shared
from tcomp.codegen.nvptx.assembly.diagnostics import Message, extern_messages, located, messages_in, symbol_at
from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.codegen.nvptx.assembly.resources import Resources, parse_log
from tcomp.dsl.ast import Span
from tcomp.machine.gpu import A100, B200, H100, RTX4090

LOG = """\
ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions reading accumulator registers of  a wgmma between start and end of the pipeline stage in the function \
'gemm' in line 321
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : Overriding maximum register limit 256 for 'gemm' with  40 of maxrregcount option
ptxas warning : Local memory used for function 'gemm', size of stack frame: 160 bytes
ptxas info    : 0 bytes gmem
ptxas info    : Function properties for helper
ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compile time = 1.049 ms
ptxas info    : Compiling entry function 'gemm' for 'sm_90a'
ptxas info    : Function properties for gemm
    160 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 7 barriers, 256 bytes smem
ptxas info    : Compiling entry function '_Z4olderPf' for 'sm_80'
ptxas info    : Function properties for _Z4olderPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, 376 bytes cmem[0]
info    : 0 bytes gmem
info    : Function properties for 'gemm':
info    : used 168 registers, used 12 barriers, 160 stack, 1280 bytes smem, 540 bytes cmem[0], 0 bytes lmem
"""


def test_the_log_by_function() -> None:
    assert parse_log(LOG) == (
        Resources("helper", stack_bytes=8, entry=False),
        Resources("gemm", 168, 16, 24, 160, barriers=7),
        Resources("_Z4olderPf", 24),
    )
    assert parse_log("") == () == parse_log("nothing of use\n")


def test_remarks_of_the_log() -> None:
    serial, setmaxnreg = messages_in(LOG)
    assert (serial.code, serial.symbol, serial.line, serial.severity) == ("C7514", "gemm", 321, "warning")
    assert serial.text.startswith("wgmma.mma_async instructions are serialized")
    assert (setmaxnreg.code, setmaxnreg.symbol) == ("C7508", "")
    fatal = "ptxas application ptx input, line 7; fatal   : Parsing error near '%f2': syntax error"
    assert messages_in(fatal) == (Message("error", "error", "Parsing error near '%f2': syntax error", "", 7),)
    assert messages_in("ptxas error   : (C7602) insufficient registers in function 'k'")[0].code == "C7602"


PTX = """\
.version 8.0
.target sm_90a
/* .extern .func old; */
.extern .func  (.param .b32 r) f
(.param .b32 x)
;
.func (.param .b32 r) helper(.param .b32 x) { ret; }
.visible .entry one() {
  // call f, ();
  ret;
}
.entry two() {
  call.uni (r),
  f,
  (x);
}
"""


def test_places_in_the_ptx() -> None:
    assert [symbol_at(PTX, n) for n in (1, 7, 9, 13)] == ["", "helper", "one", "two"]
    (found,) = extern_messages(PTX)
    assert (found.symbol, found.line, found.code) == ("two", 13, "extern") and "calls f," in found.text
    placed = list(located([Message("warning", "C1", "x", "", 9), Message("warning", "C2", "y")], PTX))
    assert [m.symbol for m in placed] == ["one", ""], "two kernels: a remark without a line belongs to neither"
    only = located([Message("warning", "C2", "y")], ".visible .entry k()\n{\n}")
    assert [m.symbol for m in only] == ["k"]


def test_a_message_is_one_line_at_its_place() -> None:
    m = Message("warning", "C7514", "wgmma serialised", "gemm", 321)
    assert m.describe() == "warning: kernel gemm: wgmma serialised (PTX line 321) [C7514]"
    assert m.describe(Span("ops/linear.tc", 12, 3, 12, 9)).startswith("ops/linear.tc:12:3: warning: kernel gemm")
    assert m.finding and not Message("note", "x", "y").finding


def test_cubins_that_are_none() -> None:
    for bad in (b"", b"\x7fELF", b"\x7fELF\x02" + b"\xff" * 100, b"\x7fELF\x01" + bytes(100)):
        with pytest.raises(ValueError, match=r"ELF|section"):
            static_shared(bad, 90)


# ------------------------------------------------------------------------------------------- occupancy


@pytest.mark.parametrize(
    ("machine", "registers", "threads", "shared", "blocks", "limit"),
    [
        (H100, 32, 256, 0, 8, "threads"),
        (H100, 33, 256, 0, 6, "registers"),  # 40 x 32 = 1280 a warp: 12 warps a sub-core
        (H100, 255, 128, 0, 2, "registers"),
        (H100, 168, 384, 212992, 1, "registers"),  # three warps of 5376 in each sub-core's 16384
        (H100, 32, 64, 100 << 10, 2, "shared"),
        (H100, 32, 64, (114 << 10) - 1024, 2, "shared"),
        (H100, 32, 64, (114 << 10) - 1023, 1, "shared"),  # the block's own 1 KB does not fit a second time
        (H100, 16, 32, 0, 32, "blocks"),
        (H100, 24, 1024, 0, 2, "threads"),
        (A100, 128, 256, 0, 2, "registers"),
        (RTX4090, 24, 1024, 0, 1, "threads"),  # 48 warps
        (RTX4090, 32, 32, 0, 24, "blocks"),
        (RTX4090, 32, 128, 48 << 10, 2, "shared"),
    ],
)
def test_blocks_per_sm(machine: object, registers: int, threads: int, shared: int, blocks: int, limit: str) -> None:
    from tcomp.machine.gpu import GpuMachine

    assert isinstance(machine, GpuMachine)
    found = occupancy(machine, registers, threads, shared)
    assert (found.blocks, found.limit, found.problem) == (blocks, limit, "")
    assert found.warps == blocks * threads // 32
    assert found.fraction == pytest.approx(found.warps / machine.warps_per_sm)


@pytest.mark.parametrize(
    ("columns", "blocks", "limit"),
    [(512, 1, "columns"), (256, 2, "columns"), (128, 4, "columns"), (64, 5, "shared"), (0, 5, "shared")],
)
def test_blocks_per_sm_that_tensor_memory_has_columns_for(columns: int, blocks: int, limit: str) -> None:
    found = occupancy(B200, 32, 128, 40 << 10, columns)
    assert (found.blocks, found.limit) == (blocks, limit)


def test_tensor_memory_that_is_not_there() -> None:
    assert occupancy(B200, 32, 128, 0, 1024).problem.startswith(
        "columns 1024 of tensor memory for a block, an SM has 512"
    )
    assert occupancy(H100, 32, 128, 0, 32).blocks == 0


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "word"),
    [
        (80, 1024, 0, "registers 81920 for a block"),
        (32, 1025, 0, "threads 1025"),
        (32, 0, 0, "threads 0"),
        (32, 128, 232449, "at most 232448"),
        (256, 32, 0, "registers 256 per thread"),
    ],
)
def test_kernels_that_cannot_be_launched(registers: int, threads: int, shared: int, word: str) -> None:
    found = occupancy(H100, registers, threads, shared)
    assert found.blocks == 0 and word in found.problem
    assert found.limit in ("registers", "threads", "shared")
