"""Sums that cannot all be in a thread's registers are refused when a kernel is lowered, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.ir.tile import Kernel
from tcomp.ir.walk import loops_in
from tcomp.machine.gpu import H100, GpuMachine, machine_named
from tcomp.schedule.gpu import registers as gpu_registers
from tcomp.schedule.gpu.registers import collected, held_by, limit
from tcomp.schedule.lower import lower
from tests.reference.op_cases import library

OP = """op gated(X: bf16[M, K], V: bf16[N, K], W: bf16[N, K]) -> Y: f32[M, N]:
  a[m, n]: f32 = sum k: X[m, k] * V[n, k]
  b[m, n]: f32 = sum k: X[m, k] * W[n, k]
  Y[m, n] = a[m, n] * b[m, n]

"""
WGMMA = """schedule gated on sm_90a:
  m -> grid.y(128) / warpgroup(64) / mma
  n -> grid.x(256) / mma
  k -> pipe(64, 2) / mma
  fuse a, b at k
  stage X, V, W in shared at k by tma
  use wgmma for a, b
"""
TUNED = WGMMA.replace("  m ->", "  tune BN = 256 from 64, 128, 256\n  m ->", 1).replace("x(256)", "x(BN)")
MMA = """schedule gated on sm_80:
  m -> grid.y(128) / warp(32) / mma
  n -> grid.x(128) / mma
  k -> pipe(32, 3) / mma
  fuse a, b at k
  stage X, V, W in shared at k by cp.async swizzle
  use mma.sync for a, b
"""


def lowered(text: str, machine: GpuMachine = H100, n: int = 512) -> Kernel:
    module: Module = load_text(OP + text, "gated.tc")
    (kernel,) = lower(module.ops["gated"], module, {"M": 256, "N": n, "K": 128}, machine).kernels
    return kernel


def certain(kernel: Kernel) -> int:
    """Registers of the most sums that a loop of the kernel holds."""
    loops = [loop for phase in kernel.phases for loop in loops_in(phase) if loop.level != "grid"]
    return max(sum(h.registers() for h in held_by(loop, kernel)) for loop in loops)


def test_the_refusal_has_the_place_the_tiles_the_count_and_a_remedy() -> None:
    with pytest.raises(TcError) as found:
        lowered(TUNED)
    assert found.value.render() == (
        "gated.tc:2:3: error: each thread would hold sums in 256 registers at the same time (128 for 'a', 128 for 'b'),"
        " and has 255\n"
        "  2 |   a[m, n]: f32 = sum k: X[m, k] * V[n, k]\n"
        "    |   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  help: take tiles of 128 of 'n' instead of 256 (BN, line 7)"
    )
    assert certain(lowered(TUNED.replace("BN = 256", "BN = 128"))) == 128


@pytest.mark.parametrize(
    ("text", "machine", "count"),
    [
        (WGMMA, "h100", 256),
        (WGMMA.replace("x(256)", "x(248)") + "  producer warpgroup(40)\n", "h100", 248),
        (WGMMA.replace("y(128) / warpgroup(64)", "y(256) / warpgroup(64, 2)").replace("x(256)", "x(128)"), "h100", 256),
    ],
)
def test_the_remedy_works(text: str, machine: str, count: int) -> None:
    with pytest.raises(TcError, match=f"in {count} registers") as found:
        lowered(text, machine_named(machine))
    step = re.fullmatch(r"take tiles of (\d+) of '(\w)' instead of (\d+) \(line (\d+)\)", found.value.hint)
    assert step is not None
    lines = (OP + text).splitlines()
    lines[int(step[4]) - 1] = lines[int(step[4]) - 1].replace(f"({step[3]})", f"({step[1]})", 1)
    mended = lowered("\n".join(lines).removeprefix(OP) + "\n", machine_named(machine))
    assert certain(mended) <= limit(mended, machine_named(machine)) - gpu_registers.ROOM


def test_registers_that_the_producer_gives_up_are_counted() -> None:
    """Two warpgroups have 232 registers a thread beside a producer that keeps 40, and 255 by themselves."""
    wide = WGMMA.replace("x(256)", "x(248)")
    with pytest.raises(TcError, match=r"in 248 registers .* and has 232"):
        lowered(wide + "  producer warpgroup(40)\n", n=496)
    assert limit(lowered(wide, n=496), H100) == 255 and certain(lowered(wide, n=496)) == 248


def test_what_only_spills_is_left_to_the_assembler() -> None:
    assert lowered(MMA, machine_named("a100"), 256)


def test_sums_in_tensor_memory_take_no_registers() -> None:
    text = WGMMA.replace("sm_90a", "sm_100a").replace("wgmma", "tcgen05").replace("warpgroup(64)", "warpgroup(128)")
    kernel = lowered(text, machine_named("b200"))
    assert collected(kernel) == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize("columns", [192, 256])
def test_the_assembler_serialises_what_is_refused(
    columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_registers, "limit", lambda *_: 10_000)
    kernel = lowered(WGMMA.replace("x(256)", f"x({columns})"), n=2 * columns)
    found = assemble(compile_kernel(kernel, H100).ptx, "sm_90a", tmp_path)
    if certain(kernel) > limit(kernel, H100):
        assert {m.code for m in found.findings} >= {"C7511", "spill"}
    else:
        assert certain(kernel) <= next(r.registers for r in found.resources if r.entry)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["h100", "b200"])
def test_nothing_of_the_library_is_refused(machine: str) -> None:
    """By a bound that can only be too low, at heads as wide as there are schedules for."""
    module, sizes = library(), dict.fromkeys("MNKTCVESPFQ", 512) | {"B": 1, "H": 2, "G": 2, "R": 2, "W": 4}
    for name, op in module.ops.items():
        for width in (64, 128, 192, 256) if "attention" in name else (64,):
            try:
                lower(bound(op, DType.BF16), module, {**sizes, "D": width}, machine_named(machine))
            except TcError as e:
                assert "registers at the same time" not in e.message, name
