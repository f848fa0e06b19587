"""The native loop that runs a launch list: every thread calls each kernel in turn, with a barrier after each.

Given as LLVM IR, compiled once per machine. Python enters it once per thread and program, so nothing of Python
stands between kernels. The barrier counts arrivals; the last one opens the next generation. Waiting threads
spin a bounded number of times and then sleep, so that they do not take their cores from the threads they wait for, nor
lose their turn to other programs, as a thread that yields does. (Where the system is not Linux they yield.)
"""

from __future__ import annotations

import ctypes
import sys

import llvmlite.binding as llvm

from tcomp.machine.cpu import CpuMachine, family_of

SYMBOL = "tc_run"
SPINS, SPINS_CROWDED = 10_000, 1000
"""How often a waiting thread looks before it rests, where each thread may have a core to itself and where not. Being
woken takes tens of microseconds, which the threads' small differences in speed must not cost at every kernel."""

CONTROL_BYTES = 256
"""Arrivals at byte 0, sleeping threads at byte 64, generation at byte 128 (cache lines of their own)."""


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
    ctypes.c_void_p,  # `rest_address()`
    ctypes.c_int64,  # looks of a waiting thread before it rests
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
                    ptr %control, ptr %rest, i64 %spins.most, ptr %times, ptr %done, i64 %ticket) nounwind {
entry:
  %sleeping.at = getelementptr i8, ptr %control, i64 64
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
  store atomic i64 %opened, ptr %generation.at seq_cst, align 8
  WAKE
wait:
  %spins = phi i64 [0, %arrive], [%spins.next, %spin], [%spins.next, %sleep]
  %now = load atomic i64, ptr %generation.at acquire, align 8
  %open.now = icmp ne i64 %now, %generation
  br i1 %open.now, label %passed, label %wait.more
wait.more:
  %spins.next = add i64 %spins, 1
  %long = icmp ugt i64 %spins.next, %spins.most
  br i1 %long, label %sleep, label %spin
spin:
  PAUSE
  br label %wait
sleep:
  REST
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


# The kernel puts a thread to sleep only while the generation is still the one it waits for. A thread counts itself as
# sleeping before that, and the generation is opened before sleepers are looked for, so none is missed.
_SLEEP = """%counted = atomicrmw add ptr %sleeping.at, i64 1 seq_cst
  %expected = trunc i64 %generation to i32
  %slept = call i64 (i64, ...) %rest(i64 FUTEX, ptr %generation.at, i32 WAIT, i32 %expected, ptr null, ptr null, i32 0)
  %discounted = atomicrmw sub ptr %sleeping.at, i64 1 seq_cst"""
_WAKE = """%sleeping = load atomic i64, ptr %sleeping.at seq_cst, align 8
  %all.awake = icmp eq i64 %sleeping, 0
  br i1 %all.awake, label %passed, label %wake
wake:
  %woken = call i64 (i64, ...) %rest(i64 FUTEX, ptr %generation.at, i32 WAKE, i32 2147483647, ptr null, ptr null, i32 0)
  br label %passed"""
_YIELD = "%ignored = call i32 %rest()"

_FUTEX = {"x86": 202, "arm": 98}
"""Linux's number of the system call futex(2)."""
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129
"""Its operations on a word that one process alone uses."""


def sleeps(machine: CpuMachine) -> bool:
    """Whether waiting threads sleep, else they yield."""
    return sys.platform == "linux" and sys.byteorder == "little" and family_of(machine.name) in _FUTEX


def interpreter_ir(machine: CpuMachine) -> str:
    """The interpreter for this machine as LLVM IR text."""
    family = family_of(machine.name)
    pause, declare = _PAUSE[family]
    rest, wake = _YIELD, "br label %passed"
    if sleeps(machine):
        number = str(_FUTEX[family])
        rest = _SLEEP.replace("FUTEX", number).replace("WAIT", str(_WAIT_PRIVATE))
        wake = _WAKE.replace("FUTEX", number).replace("WAKE", str(_WAKE_PRIVATE))
    text = _TEXT.replace("SYMBOL", SYMBOL).replace("PAUSE", pause).replace("DECLARE", declare)
    return text.replace("REST", rest).replace("WAKE", wake)


def compile_interpreter(machine: CpuMachine) -> bytes:
    """Object code with the one function SYMBOL."""
    from tcomp.codegen.cpu.compile import target_machine  # loads the generator: only where the cache has no code

    module = llvm.parse_assembly(interpreter_ir(machine))
    module.verify()
    return bytes(target_machine(machine).emit_object(module))


def rest_address(machine: CpuMachine) -> int:
    """The address of the C library's function by which waiting threads rest; OSError where there is none."""
    library = ctypes.CDLL(None)
    name = "syscall" if sleeps(machine) else "sched_yield"
    function = getattr(library, name, None)
    if function is None:
        raise OSError(f"this C library has no {name}")
    return ctypes.cast(function, ctypes.c_void_p).value or 0
