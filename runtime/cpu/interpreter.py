"""The native loop that runs a launch list: every thread calls each kernel in turn, with a barrier after each.

Given as LLVM IR, compiled once per machine. Python enters it once per thread and program, so nothing of Python
stands between kernels. The barrier counts arrivals; the last one opens the next generation. Waiting threads
spin a bounded number of times and then sleep, so that they do not take their cores from the threads they wait for, nor
lose their turn to other programs, as a thread that yields does. (Where the system is not Linux they yield.)

A program may have a second list, beside the first. At launch `fork` the last `helpers` threads leave the others, share
that list's entries out among them, and count what they have done, each in a word of its own; a launch of the first list
may say how much of that it needs. Whoever comes last to a barrier waits for it on behalf of all, and, where the second
list is at its end, says at which launch the helpers join again: the last one at the latest, so that they have seen it
when the program ends. How soon they do depends on their speed, and nothing else does.
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

JOIN, DONE = 192, 256


def control_bytes(helpers: int) -> int:
    """Arrivals at byte 0, sleeping threads at byte 64, generation at byte 128, the launch at which helpers join again
    (-1: not yet) at JOIN, what each helper has done from DONE on (cache lines of their own)."""
    return DONE + 64 * helpers


class NativeLaunch(ctypes.Structure):
    """One launch: the function, its operands' byte offsets in the arena, and the region that threads share (0: that of
    all launches). With `parts` the threads call it for `first` to `last` - 1 of so many equal parts (or, with `list`,
    for the parts whose numbers stand there), as if each were a thread's. `needs` entries of the second list must have
    been done before."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("team", ctypes.c_void_p),
        ("list", ctypes.c_void_p),
        ("parts", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("needs", ctypes.c_int64),
    ]


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
    ctypes.c_void_p,  # the second list
    ctypes.c_int64,  # how many
    ctypes.c_int64,  # the launch at which helpers leave
    ctypes.c_int64,  # helpers
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
%launch.type = type {ptr, ptr, ptr, ptr, i64, i64, i64, i64}

define internal void @call(ptr %launch, ptr %arena, ptr %scratch, ptr %common, i64 %tid, i64 %threads) nounwind {
entry:
  %offsets.at = getelementptr %launch.type, ptr %launch, i64 0, i32 1
  %team.at = getelementptr %launch.type, ptr %launch, i64 0, i32 2
  %list.at = getelementptr %launch.type, ptr %launch, i64 0, i32 3
  %parts.at = getelementptr %launch.type, ptr %launch, i64 0, i32 4
  %first.at = getelementptr %launch.type, ptr %launch, i64 0, i32 5
  %last.at = getelementptr %launch.type, ptr %launch, i64 0, i32 6
  %function = load ptr, ptr %launch
  %offsets = load ptr, ptr %offsets.at
  %own = load ptr, ptr %team.at
  %list = load ptr, ptr %list.at
  %parts = load i64, ptr %parts.at
  %first = load i64, ptr %first.at
  %last = load i64, ptr %last.at
  %shared = icmp eq ptr %own, null
  %team = select i1 %shared, ptr %common, ptr %own
  %whole = icmp eq i64 %parts, 0
  br i1 %whole, label %all, label %share
all:
  call void %function(ptr %arena, ptr %offsets, ptr %scratch, ptr %team, i64 %tid, i64 %threads)
  ret void
share:
  %count = sub i64 %last, %first
  %tid.next = add i64 %tid, 1
  %low.all = mul i64 %count, %tid
  %high.all = mul i64 %count, %tid.next
  %low.share = udiv i64 %low.all, %threads
  %high.share = udiv i64 %high.all, %threads
  %low = add i64 %first, %low.share
  %high = add i64 %first, %high.share
  %listed = icmp ne ptr %list, null
  br label %look
look:
  %j = phi i64 [%low, %share], [%j.next, %part]
  %more = icmp slt i64 %j, %high
  br i1 %more, label %number, label %finish
number:
  br i1 %listed, label %read, label %part
read:
  %named.at = getelementptr i64, ptr %list, i64 %j
  %named = load i64, ptr %named.at
  br label %part
part:
  %part.number = phi i64 [%j, %number], [%named, %read]
  call void %function(ptr %arena, ptr %offsets, ptr %scratch, ptr %team, i64 %part.number, i64 %parts)
  %j.next = add i64 %j, 1
  br label %look
finish:
  ret void
}

; Whether the first `wanted` entries of the second list are done: helper h does entries h, h + helpers, ...
define internal i1 @reached(ptr %control, i64 %helpers, i64 %wanted) nounwind {
entry:
  br label %look
look:
  %h = phi i64 [0, %entry], [%h.next, %helper]
  %any = icmp ult i64 %h, %helpers
  br i1 %any, label %helper, label %yes
helper:
  %h.next = add i64 %h, 1
  %line = mul i64 %h, 64
  %line.at = add i64 %line, DONE
  %done.at = getelementptr i8, ptr %control, i64 %line.at
  %done = load atomic i64, ptr %done.at acquire, align 8
  %up = add i64 %wanted, %helpers
  %up.less = sub i64 %up, %h.next
  %own = udiv i64 %up.less, %helpers
  %enough = icmp uge i64 %done, %own
  br i1 %enough, label %look, label %no
yes:
  ret i1 true
no:
  ret i1 false
}

define void @SYMBOL(ptr %launches, i64 %count, ptr %arena, ptr %scratch, ptr %team, i64 %tid, i64 %threads,
                    ptr %control, ptr %rest, i64 %spins.most, ptr %side, i64 %side.count, i64 %fork, i64 %helpers,
                    ptr %times, ptr %done, i64 %ticket) nounwind {
entry:
  %sleeping.at = getelementptr i8, ptr %control, i64 64
  %generation.at = getelementptr i8, ptr %control, i64 128
  %join.at = getelementptr i8, ptr %control, i64 JOIN
  %main = sub i64 %threads, %helpers
  %helps = icmp uge i64 %tid, %main
  %helper = sub i64 %tid, %main
  %helper.line = mul i64 %helper, 64
  %helper.byte = add i64 %helper.line, DONE
  %done.at = getelementptr i8, ptr %control, i64 %helper.byte
  %timed.any = icmp ne ptr %times, null
  %is.first = icmp eq i64 %tid, 0
  %timed = and i1 %timed.any, %is.first
  br i1 %timed, label %begin.timed, label %begin
begin.timed:
  %t0 = call i64 @llvm.readcyclecounter()
  store i64 %t0, ptr %times
  br label %begin
begin:
  %some = icmp sgt i64 %count, 0
  br i1 %some, label %launch, label %finish
launch:
  %i = phi i64 [0, %begin], [%i.next, %next], [%joined, %join]
  %n.before = phi i64 [%threads, %begin], [%n.next, %next], [%threads, %join]
  %parting = icmp eq i64 %i, %fork
  br i1 %parting, label %part, label %do
part:
  br i1 %helps, label %aside, label %do
do:
  %n = phi i64 [%n.before, %launch], [%main, %part]
  %launch.at = getelementptr %launch.type, ptr %launches, i64 %i
  call void @call(ptr %launch.at, ptr %arena, ptr %scratch, ptr %team, i64 %tid, i64 %n)
  %i.next = add i64 %i, 1
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %passed, label %arrive
arrive:
  %last = sub i64 %n, 1
  %generation = load atomic i64, ptr %generation.at acquire, align 8
  %arrived = atomicrmw add ptr %control, i64 1 acq_rel
  %is.last = icmp eq i64 %arrived, %last
  br i1 %is.last, label %come, label %wait
come:
  %apart = icmp ult i64 %n, %threads
  br i1 %apart, label %ask, label %open
ask:
  %final = sub i64 %count, 1
  %over = icmp uge i64 %i.next, %final
  br i1 %over, label %need, label %ask.next
ask.next:
  %needs.at = getelementptr %launch.type, ptr %launches, i64 %i.next, i32 7
  %needs = load i64, ptr %needs.at
  br label %need
need:
  %wanted = phi i64 [%side.count, %ask], [%needs, %ask.next], [%wanted, %need.more]
  %there = call i1 @reached(ptr %control, i64 %helpers, i64 %wanted)
  br i1 %there, label %look, label %need.more
need.more:
  PAUSE
  br label %need
look:
  %ended = call i1 @reached(ptr %control, i64 %helpers, i64 %side.count)
  br i1 %ended, label %call.back, label %open
call.back:
  store atomic i64 %i.next, ptr %join.at release, align 8
  br label %open
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
  %join.now = load atomic i64, ptr %join.at acquire, align 8
  %together = icmp sge i64 %join.now, 0
  %n.next = select i1 %together, i64 %threads, i64 %n
  br i1 %timed, label %stamp, label %next
stamp:
  %t = call i64 @llvm.readcyclecounter()
  %time.at = getelementptr i64, ptr %times, i64 %i.next
  store i64 %t, ptr %time.at
  br label %next
next:
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %launch, label %finish
aside:
  %k = phi i64 [%helper, %part], [%k.next, %aside.do]
  %did = phi i64 [0, %part], [%did.next, %aside.do]
  %aside.more = icmp ult i64 %k, %side.count
  br i1 %aside.more, label %aside.do, label %back
aside.do:
  %side.at = getelementptr %launch.type, ptr %side, i64 %k
  call void @call(ptr %side.at, ptr %arena, ptr %scratch, ptr %team, i64 0, i64 1)
  %did.next = add i64 %did, 1
  store atomic i64 %did.next, ptr %done.at release, align 8
  %k.next = add i64 %k, %helpers
  br label %aside
back:
  %generation.b = load atomic i64, ptr %generation.at acquire, align 8
  %joined = load atomic i64, ptr %join.at acquire, align 8
  %called = icmp sge i64 %joined, 0
  br i1 %called, label %join, label %wait.b
wait.b:
  %spins.b = phi i64 [0, %back], [%spins.next.b, %spin.b], [%spins.next.b, %sleep.b]
  %now.b = load atomic i64, ptr %generation.at acquire, align 8
  %open.b = icmp ne i64 %now.b, %generation.b
  br i1 %open.b, label %back, label %wait.more.b
wait.more.b:
  %spins.next.b = add i64 %spins.b, 1
  %long.b = icmp ugt i64 %spins.next.b, %spins.most
  br i1 %long.b, label %sleep.b, label %spin.b
spin.b:
  PAUSE
  br label %wait.b
sleep.b:
  BACK
  br label %wait.b
join:
  br label %launch
finish:
  store atomic i64 %ticket, ptr %done release, align 8
  ret void
}
declare i64 @llvm.readcyclecounter()
DECLARE
"""


# The kernel puts a thread to sleep only while the generation is still the one it waits for. A thread counts itself as
# sleeping before that, and the generation is opened before sleepers are looked for, so none is missed.
_SLEEP = """%countedHOW = atomicrmw add ptr %sleeping.at, i64 1 seq_cst
  %expectedHOW = trunc i64 %generationHOW to i32
  %sleptHOW = call i64 (i64, ...) %rest(i64 FUTEX, ptr %generation.at, i32 WAIT, i32 %expectedHOW, ptr null, ptr null,
                                     i32 0)
  %discountedHOW = atomicrmw sub ptr %sleeping.at, i64 1 seq_cst"""
_WAKE = """%sleeping = load atomic i64, ptr %sleeping.at seq_cst, align 8
  %all.awake = icmp eq i64 %sleeping, 0
  br i1 %all.awake, label %passed, label %wake
wake:
  %woken = call i64 (i64, ...) %rest(i64 FUTEX, ptr %generation.at, i32 WAKE, i32 2147483647, ptr null, ptr null, i32 0)
  br label %passed"""
_YIELD = "%ignoredHOW = call i32 %rest()"

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
    text = text.replace("JOIN", str(JOIN)).replace("DONE", str(DONE))
    return (
        text.replace("REST", rest.replace("HOW", "")).replace("BACK", rest.replace("HOW", ".b")).replace("WAKE", wake)
    )


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
