"""bf16 vectors by even and odd elements: what comes of them in any length, what keeps its order, the loops."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import DType, Expr, Num
from tcomp.dsl.load import load
from tcomp.dsl.storage import bound
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Statement
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower
from tests.reference.tile_ir import at, fn, op, operand
from tests.tcomp.cpu.support import MACHINES, axis, kernel, normal, run, tile_axis
from tests.tcomp.cpu.test_dot import ZEN4

X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's assembly")
LENGTHS = (1, 7, 16, 31, 32, 33, 48, 64, 65, 100, 131)


def bits(x: np.ndarray) -> np.ndarray:
    """f32 rounded to bf16, as its bits."""
    b = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return np.asarray((b + 0x7FFF + ((b >> 16) & 1)) >> 16).astype(np.uint16)


def real(b: np.ndarray) -> np.ndarray:
    """bf16 bits as f32."""
    return np.asarray(b.astype(np.uint32) << 16).view(np.float32)


def narrow(name: str, *shape: int) -> Buffer:
    return operand(name, *shape, dtype=DType.BF16)


@pytest.mark.parametrize("n", LENGTHS)
def test_maps_of_any_length(n: int, machine: CpuMachine, objects: Path) -> None:
    """Two tensors, one of them a row for all; one read an element further on; a scalar of a row; the index. Each length
    with each number of vectors at a time, on one machine or another."""
    m, unroll = 3, 1 + (LENGTHS.index(n) + MACHINES.index(machine)) % 3
    axes = (axis("i", m), axis("j", n, unroll, machine.lanes_f32))
    body: list[Statement] = [
        Compute(at("Y", "i", "j"), op("+", op("*", at("X", "i", "j"), at("s", "i")), at("b", "j")), axes),
        Compute(at("Z", "i", "j"), op("-", at("X", "i", op("+", "j", 1)), at("X", "i", "j")), axes),
        Compute(at("K", "i", "j"), fn("select", op("==", "j", at("t", "i")), op("+", "j", "i"), op("*", "j", 2)), axes),
        Compute(at("A", "i", "j"), at("X", "i", "j"), axes, accumulate=True),
    ]
    names = [narrow("X", m, n + 1), operand("s", m), narrow("b", n), operand("t", m, dtype=DType.I32),
             *(narrow(o, m, n) for o in "YZKA")]  # fmt: skip
    x, b, s, a = bits(normal(m, n + 1)), bits(normal(n, seed=1)), normal(m, seed=2), bits(normal(m, n, seed=3))
    t = np.array([0, n - 1, n // 2], np.int32)
    out = run(kernel(names, body), machine, objects, {"X": x, "b": b, "s": s, "t": t, "A": a})
    wide, i, j = real(x), np.arange(m)[:, None], np.arange(n)
    y = np.float64(wide[:, :n]) * s[:, None] + real(b)
    np.testing.assert_allclose(real(out["Y"]), y, rtol=2.0**-8, atol=1e-6)
    np.testing.assert_array_equal(out["Z"], bits(wide[:, 1:] - wide[:, :n]))
    np.testing.assert_array_equal(out["K"], bits(np.where(j == t[:, None], j + i, 2 * j)))
    np.testing.assert_array_equal(out["A"], bits(real(a) + wide[:, :n]))


@pytest.mark.parametrize("n", LENGTHS)
def test_reductions_over_the_lanes(n: int, machine: CpuMachine, objects: Path) -> None:
    m = 3
    axes = (axis("i", m), axis("j", n, 1, machine.lanes_f32))
    x, j = at("X", "i", "j"), frozenset("j")
    body: list[Statement] = [
        Compute(at("s", "i"), op("*", x, at("w", "j")), axes, j, "sum"),
        Compute(at("q", "i"), op("*", x, "j"), axes, j, "sum", accumulate=True),
        Compute(at("hi", "i"), x, axes, j, "max"),
        Compute(at("lo", "i"), x, axes, j, "min"),
    ]
    k = kernel([narrow("X", m, n), narrow("w", n), *(operand(o, m) for o in ("s", "q", "hi", "lo"))], body)
    v, w = bits(normal(m, n)), bits(normal(n, seed=1))
    out = run(k, machine, objects, {"X": v, "w": w, "q": np.ones(m)})
    wide = real(v).astype(np.float64)
    np.testing.assert_allclose(out["s"], wide @ real(w), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["q"], 1 + wide @ np.arange(n), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(out["hi"], wide.max(1))
    np.testing.assert_array_equal(out["lo"], wide.min(1))


def test_what_is_no_number_and_what_is_rounded(machine: CpuMachine, objects: Path) -> None:
    """Infinities, NaN, values between two of bf16 and large ones, each in an even and in an odd place."""
    x = np.repeat(np.array([0x7F80, 0xFF80, 0x7FC1, 0x3F80, 0xBF81, 0x7F7F, 0x0080, 0x8000] * 4, np.uint16), 2)
    n = x.size
    scaled = op("*", at("X", "j"), 1.0 + 2.0**-8)  # halfway: to even
    k = kernel([narrow("X", n), narrow("Y", n)], [Compute(at("Y", "j"), scaled, (axis("j", n, 2, machine.lanes_f32),))])
    out = run(k, machine, objects, {"X": x})["Y"]
    number = (x & 0x7FFF) <= 0x7F80
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out[number], bits(real(x[number]) * np.float32(1 + 2**-8)))
    assert np.isnan(real(out[~number])).all()


def test_extents_known_at_run_time(machine: CpuMachine, objects: Path) -> None:
    """Tiles that end at the tensor's end, and what lies behind is left alone."""
    for n in (1, 40, 97, 131):
        j = tile_axis("j", 96, n, 2, machine.lanes_f32)
        body = Loop("j.0", Num(0), Num(n), 96, "seq", (Compute(at("Y", "j"), op("+", at("X", "j"), 1.0), (j,)),))
        x = bits(normal(n))
        given = {"X": x, "Z": np.full(64, 7, np.uint16)}
        out = run(kernel([narrow("X", n), narrow("Y", n), narrow("Z", 64)], [body]), machine, objects, given)
        np.testing.assert_array_equal(out["Y"], bits(real(x) + 1))
        np.testing.assert_array_equal(out["Z"], given["Z"])


def test_what_walks_memory_in_another_way_keeps_its_order(machine: CpuMachine, objects: Path) -> None:
    """Beside f32 elements; backwards, by twos and by numbers read from memory; where two points name one element."""
    n = 70
    j = (axis("j", n, 2, machine.lanes_f32),)
    x, i = at("X", "j"), at("i", "j")
    body: list[Statement] = [
        Compute(at("F", "j"), op("*", x, 2.0), j),
        Compute(at("B", "j"), at("W", "j"), j),
        Compute(at("M", "j"), op("+", x, at("W", "j")), j),
        Compute(at("R", "j"), at("X", op("-", n - 1, "j")), j),
        Compute(at("T", op("*", "j", 2)), x, j),
        Compute(at("G", "j"), at("X", i), j),
        Compute(at("S", op("//", "j", 7)), x, j, accumulate=True, distinct=False),
        Compute(at("U", "j"), x, j, guard=op("<", i, 35)),
    ]
    index = np.random.default_rng(3).permutation(n).astype(np.int32)
    names = [narrow("X", n), operand("W", n), operand("i", n, dtype=DType.I32), operand("F", n),
             *(narrow(o, n) for o in "BMRGU"), narrow("T", 2 * n), operand("S", 10)]  # fmt: skip
    v, w = bits(normal(n)), normal(n, seed=1)
    out = run(kernel(names, body), machine, objects, {"X": v, "W": w, "i": index, "U": np.zeros(n)})
    np.testing.assert_array_equal(out["F"], real(v) * 2)
    np.testing.assert_array_equal(out["B"], bits(w))
    np.testing.assert_array_equal(out["M"], bits(real(v) + w))
    np.testing.assert_array_equal(out["R"], v[::-1])
    np.testing.assert_array_equal(out["T"][::2], v)
    np.testing.assert_array_equal(out["G"], v[index])
    np.testing.assert_allclose(out["S"], real(v).reshape(10, 7).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out["U"], np.where(index < 35, v, 0))


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_conditions_cut_loops_over_any_of_it(objects: Path, data: st.DataObject) -> None:
    """`select` by a bound and by an equality, reads under a condition among them, in tiles of any size."""
    draw = data.draw
    machine = draw(st.sampled_from(MACHINES))
    n, block = draw(st.integers(1, 150)), 16 * draw(st.integers(1, 8))
    end, hit = draw(st.integers(0, n)), draw(st.integers(0, n - 1))
    j = tile_axis("j", block, n, draw(st.integers(1, 3)), machine.lanes_f32)
    known: Expr = fn("select", op("==", "j", at("t", 0)), 1.0, 0.0)
    value = fn("select", op("<", "j", end), op("-", at("X", "j"), known), 0.5)
    body = Loop("j.0", Num(0), Num(n), block, "seq", (Compute(at("Y", "j"), value, (j,)),))
    x = bits(normal(max(end, 1)))  # what lies behind the bound is not there to be read
    k = kernel([narrow("X", max(end, 1)), operand("t", 1, dtype=DType.I32), narrow("Y", n)], [body])
    out = run(k, machine, objects, {"X": x, "t": np.array([hit], np.int32)})
    want = np.full(n, 0.5, np.float32)
    want[:end] = real(x)[:end] - (np.arange(end) == hit)
    np.testing.assert_array_equal(out["Y"], bits(want))


# ------------------------------------------------------------------------------------------------------- the loops


def loops(k: Kernel) -> list[list[str]]:
    """Blocks of vector code of a kernel for a CPU with bf16 instructions that jump back to their own beginnings."""
    found, block, label = [], [], ""
    for line in kernel_assembly(k, ZEN4).splitlines():
        words = line.split()
        if words and words[0].startswith(".L") and words[0].endswith(":"):
            block, label = [], words[0][:-1]
        elif words:
            block.append(" ".join(words))
            if words[0].startswith("j") and words[-1] == label:
                found.append(list(block))
    return [b for b in found if any("zmm" in line for line in b)]


def one(value: Expr, target: Expr, reduced: frozenset[str] = frozenset(), n: int = 512) -> list[str]:
    axes: tuple[Axis, ...] = (axis("j", n, 1, 16),)
    names = [narrow("X", n), narrow("Y", n), operand("s", 1)]
    (loop,) = loops(kernel(names, [Compute(target, value, axes, reduced, "sum" if reduced else None)]))  # type: ignore[arg-type]
    return loop


@X86
def test_a_map_loads_and_stores_whole_registers_and_moves_lanes_once() -> None:
    loop = one(op("*", at("X", "j"), 3.0), at("Y", "j"))
    count = {name: sum(line.startswith(name) for line in loop) for name in ("vpmovzx", "vpermw", "vcvtne2ps2bf16")}
    assert count == {"vpmovzx": 0, "vpermw": 1, "vcvtne2ps2bf16": 1}, "\n".join(loop)


@X86
def test_a_reduction_moves_no_lanes() -> None:
    loop = one(at("X", "j"), at("s", 0), frozenset("j"))
    assert not any(line.startswith(("vpmov", "vperm", "vshuf", "vpunpck")) for line in loop), "\n".join(loop)
    assert sum("vaddps" in line for line in loop) >= 2


@X86
@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("crossentropy_at_once", {"M": 4, "P": 50304, "V": 50257}),
        ("layernorm", {"M": 4, "C": 768}),
        ("embedding", {"B": 1, "T": 4, "V": 100, "S": 8, "C": 768}),
    ],
)
def test_the_shipped_kernels_of_rows_widen_without_shuffles(name: str, dims: dict[str, int]) -> None:
    module = load("models/gpt2.tc")
    (k,) = lower(bound(module.ops[name], DType.BF16), module, dims, ZEN4).kernels
    most = [b for b in loops(k) if len(b) > 6 and not any("%k1" in line for line in b)]
    assert most and not any(line.startswith("vpmovzxwd") for b in most for line in b)
