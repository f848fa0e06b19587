"""The machine's own ceilings, measured: fused multiply-add peak and memory bandwidth, by thread count.

Gives the figures that every other benchmark is held against. The loops are LLVM IR compiled for this host:
the arithmetic ones (f32, and bf16 pairs where the host multiplies them) keep their accumulators in registers and touch
no memory; the memory ones stream over arrays far larger than a core's own caches, or take their rows in random order.
All threads start together, each pinned to a processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

from tcomp.instructions.vector import VDPBF16PS
from tcomp.machine.cpu import BF16_DOT, CpuMachine
from tcomp.runtime.cpu.loading import Loader

ACCUMULATORS = 12
"""Enough to cover four cycles of latency on two units, and few enough for sixteen vector registers."""
DOT_ACCUMULATORS = 24
"""The same for twelve cycles, of 32 registers."""


@dataclass(frozen=True)
class Ceiling:
    """A measured limit: the median of the repetitions, with the least and the greatest of them. `instruction` is the
    one that a kernel must use for it to be that kernel's limit, "" for the others' limit."""

    name: str
    threads: int
    unit: str
    median: float
    low: float
    high: float
    instruction: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name:32} {self.threads:2} thread{'s' if self.threads > 1 else ' '} "
            f"{self.median:8.1f} {self.unit}   ({self.low:.1f} .. {self.high:.1f})"
        )


def vector_widths() -> tuple[int, ...]:
    """Widths in f32 lanes that this host has, widest last."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return (4, 8, 16)
    return (4, 8) if features.get("avx2") else (4,)


def has_dots() -> bool:
    """Does this host multiply pairs of bf16 values?"""
    features = llvm.get_host_cpu_features()
    return bool(features.get(VDPBF16PS.feature) and features.get("avx512f"))


def _fma_text(lanes: int) -> str:
    """`fma8`: acc[i] = a * b + acc[i] for twelve vectors, n times; their sum is stored so that they stay alive."""
    vec = f"<{lanes} x float>"
    declare = f"declare {vec} @llvm.fma.v{lanes}f32({vec}, {vec}, {vec})"
    step = f"call {vec} @llvm.fma.v{lanes}f32({vec} %a, {vec} %b, {vec} %x{{i}})"
    return _arithmetic_text(f"fma{lanes}", lanes, vec, ACCUMULATORS, declare, step)


def _dot_text(lanes: int) -> str:
    """`dot16`: the same with both pairs of products of vdpbf16ps; data begins with two vectors of bf16."""
    vec, pairs = f"<{lanes} x float>", f"<{2 * lanes} x bfloat>"
    name = f"@{VDPBF16PS.intrinsics[lanes]}"
    declare = f"declare {vec} {name}({vec}, {pairs}, {pairs})"
    step = f"call {vec} {name}({vec} %x{{i}}, {pairs} %a, {pairs} %b)"
    return _arithmetic_text(f"dot{lanes}", lanes, pairs, DOT_ACCUMULATORS, declare, step)


def _arithmetic_text(name: str, lanes: int, operand: str, count: int, declare: str, step: str) -> str:
    """A loop of `count` independent steps, each with an accumulator %x that starts as the first operand's bits."""
    vec = f"<{lanes} x float>"
    ids = range(count)
    phis = [f"  %x{i} = phi {vec} [ %start, %entry ], [ %y{i}, %loop ]" for i in ids]
    steps = [f"  %y{i} = {step.format(i=i)}" for i in ids]
    sums = [f"  %s{i} = fadd {vec} %s{i - 1}, %y{i}" for i in ids if i]
    return "\n".join(
        [
            declare,
            f"define void @{name}(i64 %n, ptr %data) {{",
            "entry:",
            f"  %start = load {vec}, ptr %data, align 64",
            f"  %a = load {operand}, ptr %data, align 64",
            f"  %q = getelementptr {operand}, ptr %data, i64 1",
            f"  %b = load {operand}, ptr %q, align 64",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %entry ], [ %j, %loop ]",
            *phis,
            *steps,
            "  %j = add i64 %i, 1",
            "  %more = icmp slt i64 %j, %n",
            "  br i1 %more, label %loop, label %done",
            "done:",
            f"  %s0 = fadd {vec} %y0, zeroinitializer",
            *sums,
            f"  store {vec} %s{count - 1}, ptr %data, align 64",
            "  ret void",
            "}",
        ]
    )


def _stream_text(lanes: int) -> str:
    """read: sum of b[0:n]. triad: a[i] = b[i] + 3 c[i]. Four vectors a turn; n a multiple of 4 * lanes."""
    vec = f"<{lanes} x float>"

    def load(name: str, array: str, u: int) -> list[str]:
        return [
            f"  %{name}i{u} = add i64 %i, {u * lanes}",
            f"  %{name}p{u} = getelementptr float, float* %{array}, i64 %{name}i{u}",
            f"  %{name}q{u} = bitcast float* %{name}p{u} to {vec}*",
        ]

    loop = ["  %j = add i64 %i, " + str(4 * lanes), "  %more = icmp slt i64 %j, %n"]
    loop += ["  br i1 %more, label %loop, label %done", "done:"]
    read = ["define void @read(i64 %n, float* %a, float* %b, float* %c) {\nentry:\n  br label %loop\nloop:"]
    read += ["  %i = phi i64 [ 0, %entry ], [ %j, %loop ]"]
    read += [f"  %s{u} = phi {vec} [ zeroinitializer, %entry ], [ %t{u}, %loop ]" for u in range(4)]
    triad = ["define void @triad(i64 %n, float* %a, float* %b, float* %c) {\nentry:\n  br label %loop\nloop:"]
    triad += ["  %i = phi i64 [ 0, %entry ], [ %j, %loop ]"]
    triad += [f"  %one = insertelement {vec} undef, float 3.0, i32 0"]
    triad += [f"  %three = shufflevector {vec} %one, {vec} undef, <{lanes} x i32> zeroinitializer"]
    for u in range(4):
        read += load("b", "b", u)
        read += [f"  %bv{u} = load {vec}, {vec}* %bq{u}, align 64", f"  %t{u} = fadd {vec} %s{u}, %bv{u}"]
        triad += load("a", "a", u) + load("b", "b", u) + load("c", "c", u)
        triad += [f"  %bv{u} = load {vec}, {vec}* %bq{u}, align 64"]
        triad += [f"  %cv{u} = load {vec}, {vec}* %cq{u}, align 64"]
        triad += [f"  %m{u} = fmul {vec} %cv{u}, %three", f"  %t{u} = fadd {vec} %bv{u}, %m{u}"]
        triad += [f"  store {vec} %t{u}, {vec}* %aq{u}, align 64"]
    read += [
        *loop,
        f"  %u1 = fadd {vec} %t0, %t1",
        f"  %u2 = fadd {vec} %t2, %t3",
        f"  %u = fadd {vec} %u1, %u2",
    ]
    read += [
        f"  %p = bitcast float* %a to {vec}*",
        f"  store {vec} %u, {vec}* %p, align 64",
        "  ret void",
        "}",
    ]
    triad += [*loop, "  ret void", "}"]
    return "\n".join(read + triad)


def _gather_text(lanes: int) -> str:
    """gather: sum of n rows of a table, taken in the order of ids; `row` elements each, a multiple of 4 * lanes."""
    vec = f"<{lanes} x float>"
    four = range(4)
    return "\n".join(
        [
            "define void @gather(i64 %n, ptr %out, ptr %table, ptr %ids, i64 %row) {",
            "entry:",
            "  br label %outer",
            "outer:",
            "  %r = phi i64 [ 0, %entry ], [ %next, %inner_done ]",
            *(f"  %o{u} = phi {vec} [ zeroinitializer, %entry ], [ %t{u}, %inner_done ]" for u in four),
            "  %ip = getelementptr i64, ptr %ids, i64 %r",
            "  %id = load i64, ptr %ip, align 8",
            "  %at = mul i64 %id, %row",
            "  %base = getelementptr float, ptr %table, i64 %at",
            "  br label %inner",
            "inner:",
            "  %i = phi i64 [ 0, %outer ], [ %j, %inner ]",
            *(f"  %s{u} = phi {vec} [ %o{u}, %outer ], [ %t{u}, %inner ]" for u in four),
            *(
                line
                for u in four
                for line in (
                    f"  %k{u} = add i64 %i, {u * lanes}",
                    f"  %p{u} = getelementptr float, ptr %base, i64 %k{u}",
                    f"  %v{u} = load {vec}, ptr %p{u}, align 64",
                    f"  %t{u} = fadd {vec} %s{u}, %v{u}",
                )
            ),
            f"  %j = add i64 %i, {4 * lanes}",
            "  %more = icmp slt i64 %j, %row",
            "  br i1 %more, label %inner, label %inner_done",
            "inner_done:",
            "  %next = add i64 %r, 1",
            "  %again = icmp slt i64 %next, %n",
            "  br i1 %again, label %outer, label %done",
            "done:",
            f"  %a = fadd {vec} %t0, %t1",
            f"  %b = fadd {vec} %t2, %t3",
            f"  %c = fadd {vec} %a, %b",
            f"  store {vec} %c, ptr %out, align 64",
            "  ret void",
            "}",
        ]
    )


@cache
def _loader() -> Loader:
    return Loader()


@cache
def _addresses() -> dict[str, int]:
    """The loops' addresses, compiled for this host with all that it has."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    widest = vector_widths()[-1]
    texts = {f"fma{w}": _fma_text(w) for w in vector_widths()}
    if has_dots():
        texts[f"dot{widest}"] = _dot_text(widest)
    texts |= {"read": _stream_text(widest), "gather": _gather_text(widest)}
    module = llvm.parse_assembly("\n".join(texts.values()))
    module.verify()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, reloc="pic"
    )
    return _loader().load(target.emit_object(module), (*texts, "triad"))


def _function(name: str, *args: Any) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, *args)(_addresses()[name])


def _aligned(elements: int, value: float) -> NDArray[np.float32]:
    raw = np.empty(elements + 16, np.float32)
    start = -(raw.ctypes.data // 4) % 16
    out = raw[start : start + elements]
    out[:] = value
    return out


def _together(work: Callable[[int], None], threads: int) -> float:
    """Seconds from the start of the first thread to the end of the last, all started at one barrier."""
    gate = threading.Barrier(threads)
    spans: list[tuple[float, float]] = []
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def body(tid: int) -> None:
        if len(cpus) >= threads:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {cpus[tid]})
        gate.wait()
        start = time.perf_counter()
        work(tid)  # the foreign call releases the interpreter lock
        spans.append((start, time.perf_counter()))

    workers = [threading.Thread(target=body, args=(t,)) for t in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def fma_peak(threads: int, lanes: int | None = None, seconds: float = 0.05, repetitions: int = 9) -> Ceiling:
    """Most f32 multiply-adds per second at the given (default: widest) vector width, in GFLOP/s."""
    lanes = lanes or vector_widths()[-1]
    rates = _arithmetic_rates(f"fma{lanes}", 2.0 * ACCUMULATORS * lanes, threads, lanes, seconds, repetitions)
    return _ceiling(f"fma f32, {32 * lanes}-bit vectors", threads, "GFLOP/s", rates)


def dot_peak(threads: int, seconds: float = 0.05, repetitions: int = 9) -> Ceiling | None:
    """Most multiply-adds of bf16 pairs per second, in GFLOP/s (four FLOPs an instruction and lane); None where the host
    has no instruction for them."""
    if not has_dots():
        return None
    lanes, family = vector_widths()[-1], VDPBF16PS.family
    work = 2.0 * VDPBF16PS.group * DOT_ACCUMULATORS * lanes
    rates = _arithmetic_rates(f"dot{lanes}", work, threads, lanes, seconds, repetitions)
    found = _ceiling(f"{family} bf16, {32 * lanes}-bit vectors", threads, "GFLOP/s", rates)
    return replace(found, instruction=family)


def compute_peaks(threads: int, machine: CpuMachine) -> list[Ceiling]:
    """Every arithmetic ceiling of code for this level of the host: its vectors' width, its dots where it has them."""
    dots = dot_peak(threads) if machine.name == BF16_DOT else None
    return [c for c in (fma_peak(threads, machine.lanes_f32), dots) if c is not None]


def _arithmetic_rates(
    name: str, work: float, threads: int, lanes: int, seconds: float, repetitions: int
) -> list[float]:
    """GFLOP/s of each repetition of a loop with so much `work` a turn."""
    call = _function(name, ctypes.c_void_p)
    data = [_aligned(2 * lanes, 1e-3) for _ in range(threads)]

    def turns(n: int, threads: int) -> float:
        return _together(lambda t: call(n, data[t].ctypes.data), threads)

    n = 1000
    while turns(n, 1) < seconds:
        n *= 2
    return [work * n * threads / turns(n, threads) / 1e9 for _ in range(repetitions)]


def bandwidth(kind: str, threads: int, mib: int = 256, repetitions: int = 7) -> Ceiling:
    """Memory traffic of `read` (4 bytes an element) or `triad` (12: two reads and a write; the reads that
    ordinary stores cause are not counted), over arrays of `mib` MiB each, in GB/s."""
    call = _function(kind, *[ctypes.c_void_p] * 3)
    n = mib * 2**18 // threads // 64 * 64
    counted = {"read": 4, "triad": 12}[kind]
    arrays = [
        [_aligned(n, v) if kind == "triad" or v == 1 else _aligned(64, v) for v in (0, 1, 2)] for _ in range(threads)
    ]

    def work(t: int) -> None:
        call(n, *[a.ctypes.data for a in arrays[t]])

    rates = [counted * n * threads / _together(work, threads) / 1e9 for _ in range(repetitions)]
    return _ceiling(f"memory {kind}, {mib} MiB arrays", threads, "GB/s", rates)


def gather_bandwidth(row: int, threads: int, mib: int = 256, repetitions: int = 7) -> Ceiling:
    """Bytes of rows of `row` bytes, each read once in random order from a table of `mib` MiB, in GB/s. Rows are made
    up to a multiple of what one turn of the loop reads."""
    call = _function("gather", *[ctypes.c_void_p] * 3, ctypes.c_int64)
    turn = 16 * vector_widths()[-1]
    width = -(-row // turn) * turn
    rows = max(threads, mib * 2**20 // width)
    table = _aligned(rows * width // 4, 1.0)
    ids = np.array_split(np.random.default_rng(0).permutation(rows), threads)
    outs = [_aligned(64, 0.0) for _ in range(threads)]

    def work(t: int) -> None:
        call(len(ids[t]), outs[t].ctypes.data, table.ctypes.data, ids[t].ctypes.data, width // 4)

    rates = [rows * width / _together(work, threads) / 1e9 for _ in range(repetitions)]
    return _ceiling(f"memory, random rows of {row} bytes", threads, "GB/s", rates)


def _ceiling(name: str, threads: int, unit: str, rates: list[float]) -> Ceiling:
    return Ceiling(name, threads, unit, statistics.median(rates), min(rates), max(rates))
