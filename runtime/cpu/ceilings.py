"""The machine's own ceilings, measured: fused multiply-add peak and memory bandwidth, by thread count.

Gives the figures that every other benchmark is held against. The loops are LLVM IR compiled for this host:
the arithmetic one keeps twelve accumulators in registers and touches no memory; the memory ones stream
over arrays far larger than a core's own caches. All threads start together, each pinned to a processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

ACCUMULATORS = 12
"""Enough to cover four cycles of latency on two units, and few enough for sixteen vector registers."""


@dataclass(frozen=True)
class Ceiling:
    """A measured limit: the median of the repetitions, with the least and the greatest of them."""

    name: str
    threads: int
    unit: str
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.name:32} {self.threads:2} thread{'s' if self.threads > 1 else ' '} "
            f"{self.median:8.1f} {self.unit}   ({self.low:.1f} .. {self.high:.1f})"
        )


def vector_widths() -> tuple[int, ...]:
    """Widths in f32 lanes that this host has, widest last."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return (8, 16)
    return (8,) if features.get("avx2") else (4,)


def _fma_text(lanes: int) -> str:
    """acc[i] = a * b + acc[i] for twelve vectors, n times; their sum is stored so that they stay alive."""
    vec = f"<{lanes} x float>"
    ids = range(ACCUMULATORS)
    phis = [f"  %x{i} = phi {vec} [ %a, %entry ], [ %y{i}, %loop ]" for i in ids]
    fmas = [f"  %y{i} = call {vec} @llvm.fma.v{lanes}f32({vec} %a, {vec} %b, {vec} %x{i})" for i in ids]
    sums = [f"  %s{i} = fadd {vec} %s{i - 1}, %y{i}" for i in ids if i]
    return "\n".join(
        [
            f"declare {vec} @llvm.fma.v{lanes}f32({vec}, {vec}, {vec})",
            f"define void @fma{lanes}(i64 %n, {vec}* %data) {{",
            "entry:",
            f"  %a = load {vec}, {vec}* %data, align 64",
            f"  %q = getelementptr {vec}, {vec}* %data, i64 1",
            f"  %b = load {vec}, {vec}* %q, align 64",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %entry ], [ %j, %loop ]",
            *phis,
            *fmas,
            "  %j = add i64 %i, 1",
            "  %more = icmp slt i64 %j, %n",
            "  br i1 %more, label %loop, label %done",
            "done:",
            f"  %s0 = fadd {vec} %y0, zeroinitializer",
            *sums,
            f"  store {vec} %s{ACCUMULATORS - 1}, {vec}* %data, align 64",
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


@cache
def _engine() -> tuple[Any, Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    text = "\n".join([*(_fma_text(w) for w in vector_widths()), _stream_text(vector_widths()[-1])])
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, module


def _function(name: str, *args: Any) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, *args)(_engine()[0].get_function_address(name))


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
    call = _function(f"fma{lanes}", ctypes.c_void_p)
    data = [_aligned(2 * lanes, 1e-3) for _ in range(threads)]

    def turns(n: int, threads: int) -> float:
        return _together(lambda t: call(n, data[t].ctypes.data), threads)

    n = 1000
    while turns(n, 1) < seconds:
        n *= 2
    work = 2.0 * ACCUMULATORS * lanes * n * threads
    rates = [work / turns(n, threads) / 1e9 for _ in range(repetitions)]
    return _ceiling(f"fma f32, {32 * lanes}-bit vectors", threads, "GFLOP/s", rates)


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


def _ceiling(name: str, threads: int, unit: str, rates: list[float]) -> Ceiling:
    return Ceiling(name, threads, unit, statistics.median(rates), min(rates), max(rates))
