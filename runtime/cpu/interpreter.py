"""The native loop that runs a launch list: every thread calls each kernel in turn, with a barrier after each.

Given as LLVM IR, compiled once per machine. Python enters it once per thread and program, so nothing of Python
stands between kernels. The barrier counts arrivals; the last one opens the next generation. Waiting threads
spin a bounded number of times, then yield the core, so that more threads than cores still make progress.
"""

from __future__ import annotations

import ctypes

import llvmlite.binding as llvm

from tcomp.codegen.cpu.compile import target_machine
from tcomp.machine.cpu import CpuMachine, family_of

SYMBOL = "tc_run"
SPINS = 1000
CONTROL_BYTES = 256
"""Arrivals at byte 0, generation at byte 128 (cache lines of their own)."""


class NativeLaunch(ctypes.Structure):
    """One launch: the function, and its operands' byte offsets in the arena."""

    _fields_ = [("function", ctypes.c_void_p), ("offsets", ctypes.c_void_p)]


RunFunction = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,  # launches
    ctypes.c_int64,  # how many
    ctypes.c_void_p,  # arena
    ctypes.c_void_p,  # this thread's scratch
    ctypes.c_void_p,  # team region
    ctypes.c_int64,  # thread
    ctypes.c_int64,  # threads
    ctypes.c_void_p,  # barrier
    ctypes.c_void_p,  # sched_yield
    ctypes.c_void_p,  # cycle counts, one per launch and one before, or null
    ctypes.c_void_p,  # where the ticket is written when all is done
    ctypes.c_int64,  # ticket
)

_PAUSE = {
    "x86": ("call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"),
    "arm": ("call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"),
    "generic": ("", ""),
}

_TEXT = """
define void @SYMBOL(ptr %launches, i64 %count, ptr %arena, ptr %scratch, ptr %team, i64 %tid, i64 %threads,
                    ptr %control, ptr %yield, ptr %times, ptr %done, i64 %ticket) nounwind {
entry:
  %generation.at = getelementptr i8, ptr %control, i64 128
  %timed.any = icmp ne ptr %times, null
  %is.first = icmp eq i64 %tid, 0
  %timed = and i1 %timed.any, %is.first
  %last = sub i64 %threads, 1
  br i1 %timed, label %begin.timed, label %begin
begin.timed:
  %t0 = call i64 @llvm.readcyclecounter()
  store i64 %t0, ptr %times
  br label %begin
begin:
  %some = icmp sgt i64 %count, 0
  br i1 %some, label %launch, label %finish
launch:
  %i = phi i64 [0, %begin], [%i.next, %next]
  %function.at = getelementptr {ptr, ptr}, ptr %launches, i64 %i, i32 0
  %offsets.at = getelementptr {ptr, ptr}, ptr %launches, i64 %i, i32 1
  %function = load ptr, ptr %function.at
  %offsets = load ptr, ptr %offsets.at
  call void %function(ptr %arena, ptr %offsets, ptr %scratch, ptr %team, i64 %tid, i64 %threads)
  %alone = icmp eq i64 %last, 0
  br i1 %alone, label %passed, label %arrive
arrive:
  %generation = load atomic i64, ptr %generation.at acquire, align 8
  %arrived = atomicrmw add ptr %control, i64 1 acq_rel
  %is.last = icmp eq i64 %arrived, %last
  br i1 %is.last, label %open, label %wait
open:
  store atomic i64 0, ptr %control monotonic, align 8
  %opened = add i64 %generation, 1
  store atomic i64 %opened, ptr %generation.at release, align 8
  br label %passed
wait:
  %spins = phi i64 [0, %arrive], [%spins.next, %spin], [%spins.next, %rest]
  %now = load atomic i64, ptr %generation.at acquire, align 8
  %open.now = icmp ne i64 %now, %generation
  br i1 %open.now, label %passed, label %wait.more
wait.more:
  %spins.next = add i64 %spins, 1
  %long = icmp ugt i64 %spins.next, SPINS
  br i1 %long, label %rest, label %spin
spin:
  PAUSE
  br label %wait
rest:
  %ignored = call i32 %yield()
  br label %wait
passed:
  %i.next = add i64 %i, 1
  br i1 %timed, label %stamp, label %next
stamp:
  %t = call i64 @llvm.readcyclecounter()
  %time.at = getelementptr i64, ptr %times, i64 %i.next
  store i64 %t, ptr %time.at
  br label %next
next:
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %launch, label %finish
finish:
  store atomic i64 %ticket, ptr %done release, align 8
  ret void
}
declare i64 @llvm.readcyclecounter()
DECLARE
"""


def interpreter_ir(machine: CpuMachine) -> str:
    """The interpreter for this machine as LLVM IR text."""
    pause, declare = _PAUSE[family_of(machine.name)]
    text = _TEXT.replace("SYMBOL", SYMBOL).replace("SPINS", str(SPINS))
    return text.replace("PAUSE", pause).replace("DECLARE", declare)


def compile_interpreter(machine: CpuMachine) -> bytes:
    """Object code with the one function SYMBOL."""
    module = llvm.parse_assembly(interpreter_ir(machine))
    module.verify()
    return bytes(target_machine(machine).emit_object(module))


def yield_address() -> int:
    """The address of the C library's sched_yield; OSError where there is none."""
    library = ctypes.CDLL(None)
    function = getattr(library, "sched_yield", None)
    if function is None:
        raise OSError("this C library has no sched_yield")
    return ctypes.cast(function, ctypes.c_void_p).value or 0
