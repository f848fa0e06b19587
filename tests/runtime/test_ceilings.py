"""The measured ceilings: what their machine code computes, and figures that make sense."""

from __future__ import annotations

import ctypes
import platform

import llvmlite.binding as llvm
import numpy as np
import pytest

from tcomp.machine.cpu import detect
from tcomp.runtime.cpu import ceilings
from tcomp.runtime.cpu.function_ceilings import function_kernel, function_rate
from tcomp.runtime.cpu.launch_ceiling import empty_kernel, launch_cost
from tcomp.runtime.cpu.single import SingleKernel
from tests.tcomp.cpu.support import MACHINES


@pytest.mark.parametrize("kind", ["read", "triad"])
def test_the_memory_loops_touch_every_element(kind: str) -> None:
    a, b, c = (ceilings._aligned(4096, v) for v in (0, 1, 2))
    ceilings._function(kind, *[ctypes.c_void_p] * 3)(4096, *[x.ctypes.data for x in (a, b, c)])
    if kind == "triad":
        assert (a == 7).all()
    else:
        assert a[: ceilings.vector_widths()[-1]].sum() == 4096
        assert not a[ceilings.vector_widths()[-1] :].any()


def test_the_loop_over_rows_takes_those_that_are_named() -> None:
    lanes = ceilings.vector_widths()[-1]
    table, out, ids = ceilings._aligned(64 * 256, 1.0), ceilings._aligned(64, 0.0), np.array([3, 60, 3, 8], np.int64)
    table.reshape(64, 256)[60] = 10.0
    call = ceilings._function("gather", *[ctypes.c_void_p] * 3, ctypes.c_int64)
    call(len(ids), out.ctypes.data, table.ctypes.data, ids.ctypes.data, 256)
    assert out[:lanes].sum() == 256 * (3 + 10) and not out[lanes:].any()


def test_an_empty_launch_takes_a_moment() -> None:
    """Every thread does its row, and so many launches take about so many times as long."""
    with SingleKernel(empty_kernel(2), detect(), 2) as kernel:
        kernel.array("X")[...] = 4.0
        kernel.run()
        assert kernel.array("Y")[:, 0].tolist() == [4.0, 4.0] and not kernel.array("Y")[:, 1:].any()
    found = launch_cost(1, 500, 3)
    assert 0.0 < found.low <= found.median <= found.high < 1e3


def test_the_arithmetic_loop_does_all_its_turns() -> None:
    lanes = ceilings.vector_widths()[-1]
    data = ceilings._aligned(2 * lanes, 0.5)
    ceilings._function(f"fma{lanes}", ctypes.c_void_p)(100, data.ctypes.data)
    assert data[0] == ceilings.ACCUMULATORS * (0.5 + 100 * 0.25)


@pytest.mark.skipif(not ceilings.has_dots(), reason="no AVX512-BF16 here")
def test_the_loop_of_dot_products_does_all_its_turns() -> None:
    lanes = ceilings.vector_widths()[-1]
    data = ceilings._aligned(2 * lanes, 0.5)  # an f32 0.5 is a pair of bf16: 0 and 0.5
    ceilings._function(f"dot{lanes}", ctypes.c_void_p)(100, data.ctypes.data)
    assert data[0] == ceilings.DOT_ACCUMULATORS * (0.5 + 100 * 0.25)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 assembly")
def test_the_loop_of_dot_products_is_only_that() -> None:
    """Assembled for a CPU that has the instruction, so that hosts without it see the loop too."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu="x86-64-v4", features="+avx512bf16,-prefer-256-bit", opt=2
    )
    module = llvm.parse_assembly(ceilings._dot_text(16))
    module.verify()
    (loop,) = (b for b in target.emit_assembly(module).split("\n.LBB") if b.count("vdpbf16ps"))
    body = [i for i in loop.splitlines() if i.startswith("\t") and "vaddps" not in i]
    dots = [i for i in body if "vdpbf16ps" in i]
    assert len(dots) == ceilings.DOT_ACCUMULATORS and all("zmm" in i and "(" not in i for i in dots)
    assert len(body[: body.index(dots[-1])]) == len(dots) - 1


def test_rates_are_positive_and_ordered() -> None:
    found_here = ceilings.dot_peak(1, seconds=0.001, repetitions=3)
    assert (found_here is not None) == ceilings.has_dots()
    dots = [found_here] if found_here else []
    for found in (*dots, ceilings.fma_peak(1, seconds=0.001, repetitions=3), ceilings.bandwidth("triad", 1, 8, 3)):
        assert 0 < found.low <= found.median <= found.high
        assert found.unit in str(found)
    assert np.isfinite(ceilings.bandwidth("read", 2, 8, 3).median)
    assert ceilings.gather_bandwidth(3000, 2, 8, 3).low > 0


@pytest.mark.parametrize("function", ["exp", "divide"])
def test_a_function_is_evaluated_for_every_element_of_every_thread(function: str) -> None:
    with SingleKernel(function_kernel(function, detect().lanes_f32, 2, 3), detect(), 2) as kernel:
        kernel.array("X")[...] = 0.5
        kernel.run()
        np.testing.assert_allclose(kernel.array("Y"), np.exp(0.5) if function == "exp" else 2.0, rtol=3e-7)
    assert function_rate(function, 1, 10, 3).low > 0


def test_time_grows_with_the_turns() -> None:
    """The loop over turns is not optimised away."""
    rates = [function_rate("exp", 1, turns, 5).high for turns in (200, 2000)]
    assert 0.2 < rates[1] / rates[0] < 5


def test_arithmetic_is_that_of_the_level_code_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host held to a lower level is held against what that level can do. (Which loops, not how fast they are.)"""
    monkeypatch.setattr(ceilings, "_arithmetic_rates", lambda *_: [1.0])
    for machine in MACHINES:
        general, *dots = ceilings.compute_peaks(1, machine)
        assert f"{32 * machine.lanes_f32}-bit" in general.name and not general.instruction
        assert [c.instruction for c in dots] == (["vdpbf16ps"] if machine.name == "avx512bf16" else [])
