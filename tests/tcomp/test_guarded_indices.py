"""An index that is itself read from memory, in an arm of `select`: neither it nor what it points at is read where the
arm is not taken."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from tcomp.codegen.cpu.compile import kernel_ir
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import launch, lowered

# The last point of a row has no next one: n[t + 1] would be past the tensor's end.
NEXT = """
op f(X: f32[T, N], n: i32[T]) -> y: f32[T]:
  y[t] = select(t + 1 < T, X[t, n[t + 1]], 0.0)
"""


def test_a_gpu_reads_no_index_past_a_tensors_end() -> None:
    dims = {"T": 33, "N": 5}
    kernel = lowered(NEXT, dims)
    random = np.random.default_rng(0)
    inputs = {"X": random.standard_normal((33, 5)).astype(np.float32), "n": random.integers(0, 5, 33).astype(np.int32)}
    found, reports = launch(kernel, compile_kernel(kernel, H100), inputs, H100.sm)
    assert not any(r.findings for r in reports)
    rows = np.arange(32)
    np.testing.assert_array_equal(found["y"], np.append(inputs["X"][rows, inputs["n"][1:]], np.float32(0)))


def test_a_cpu_reads_indices_under_the_mask_too() -> None:
    module, machine = load_text(NEXT), replace(detect("avx2"), lanes_f32=8, vector_registers=16)
    (kernel,) = lower(module.ops["f"], module, {"T": 32, "N": 5}, machine).kernels
    text = kernel_ir(kernel, machine)
    assert re.search(r"llvm\.masked\.load\.v8i32", text)  # (loops in which the condition holds throughout need none)


def test_a_cpu_prefetches_nothing_whose_index_it_may_not_read() -> None:
    """Behind a long sum maps' lines are asked for ahead of it, where no condition is known."""
    text = """
op f(X: f32[T, K], W: f32[K, C], E: f32[N, C], n: i32[J], ids: i32[T]) -> Y: f32[T, C]:
  acc[t, c] = sum k: X[t, k] * W[k, c]
  Y[t, c] = acc[t, c] + select(ids[t] >= 0, E[n[ids[t]], c], 0.0)

schedule f on cpu:
  t -> core(8) / seq(4) / unroll(4)
  c -> seq(64) / unroll(2) / vec
  k -> seq(256)
"""
    module, machine = load_text(text), replace(detect("avx2"), lanes_f32=8, vector_registers=16)
    (kernel,) = lower(module.ops["f"], module, {"T": 8, "K": 256, "C": 64, "N": 9, "J": 7}, machine).kernels
    lines = kernel_ir(kernel, machine)
    assert "llvm.prefetch" in lines
    read = re.findall(r'(%"\.\d+") = getelementptr i32, ptr %"n", i64 %', lines)
    assert read and not any(f"load i32, ptr {p}," in lines for p in read)
