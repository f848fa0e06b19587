"""The rules of wgmma, each broken once and each kept once: fences, waits, warpgroups, descriptors, shared memory."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import PtxError, UnknownInstruction
from tests.runtime.vgpu.wgmma_kernels import (
    COMMIT,
    FENCE,
    WAIT,
    WHOLE,
    A,
    B,
    chain,
    descriptors,
    instruction,
    kernel,
    matrix_of,
    registers_of,
    run,
    steps,
    tile,
    vector,
)


def test_registers_hold_nothing_until_the_wait() -> None:
    body = FENCE + steps() + COMMIT + "mov.b32 %e0, %d0;" + WAIT.format(0) + "mov.b32 %d0, %e0;"
    report, out, want = chain("bf16", body)
    assert report.kinds() == {"wgmma register in flight"}
    assert np.isnan(out[:, 0]).all()
    assert np.array_equal(out[:, 1:], registers_of(want)[:, 1:])


def test_a_row_is_not_reused_while_its_register_is_in_flight() -> None:
    """%a registers die at the mma_async for the program, but not for the hardware; results that nobody reads may
    not land in registers that others have by now."""
    text = instruction(64, a="{%a0, %a1, %a2, %a3}", d=vector(32, 0, "e"), scale="0")
    fill = "".join(f"mov.b32 %g{e}, {e + 7};" for e in range(8))
    use = "".join(f"add.s32 %d{e}, %g{e}, 0;" for e in range(8))
    body = f"{FENCE} {text} {COMMIT} {fill} {WAIT.format(0)} {use}"
    report, out, _ = chain("bf16", body)
    assert report.ok, report
    assert out.view(np.int32)[:, :8].tolist() == [[e + 7 for e in range(8)]] * 128


FAULTS = {
    "no fence at all": (steps() + COMMIT + WAIT.format(0), "missing wgmma.fence"),
    "accumulator written after the fence": (FENCE + "mov.b32 %d3, 0;" + steps() + COMMIT + WAIT.format(0),
                                            "missing wgmma.fence"),
    "accumulator read after the fence": (FENCE + "mov.b32 %e1, %d3;" + steps() + COMMIT + WAIT.format(0),
                                         "missing wgmma.fence"),
    "A registers written after the fence": (
        FENCE + "mov.b32 %a1, 0;" + instruction(64, a="{%a0, %a1, %a2, %a3}") + COMMIT + WAIT.format(0),
        "missing wgmma.fence"),
    "another shape without a fence": (
        FENCE + instruction(64) + instruction(64, "tf32") + COMMIT + WAIT.format(0), "missing wgmma.fence"),
    "accumulator read in flight": (FENCE + steps() + COMMIT + "mov.b32 %e1, %d3;" + WAIT.format(0),
                                   "wgmma register in flight"),
    "accumulator written in flight": (FENCE + steps() + COMMIT + "add.f32 %d31, %d31, %d31;" + WAIT.format(0),
                                      "wgmma register in flight"),
    "no wait": (FENCE + steps() + COMMIT, "wgmma register in flight"),
    "no commit": (FENCE + steps() + WAIT.format(0), "wgmma register in flight"),
    "wait for too few": (FENCE + steps() + COMMIT + WAIT.format(1), "wgmma register in flight"),
    "A registers written in flight": (
        FENCE + instruction(64, a="{%a0, %a1, %a2, %a3}") + COMMIT + "mov.b32 %a0, 0;" + WAIT.format(0),
        "wgmma register in flight"),
    "accumulators overlap another fragment in flight": (
        FENCE + instruction(64) + instruction(32, d=vector(16, 8)) + COMMIT + WAIT.format(0),
        "wgmma register in flight"),
    "shared operand overwritten before the wait": (
        FENCE + steps() + COMMIT + "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0;" + WAIT.format(0),
        "write before completion"),
    "one warp elsewhere for good": ("setp.lt.u32 %p5, %r0, 96; @!%p5 bra OUT;" + WHOLE + "OUT: bar.sync 0;",
                                    "deadlock"),
    "one warp has left": ("setp.lt.u32 %p5, %r0, 96; @!%p5 bra OUT; bra GO; OUT: exit; GO:" + WHOLE,
                          "partial warpgroup"),
    "descriptors differ": ("setp.eq.u32 %p5, %r0, 40; @%p5 add.s64 %rd20, %rd20, 64;" + WHOLE,
                           "wgmma operands differ"),
    "scale-d differs": (
        f"setp.eq.u32 %p5, %r0, 40; {FENCE}" + instruction(64, scale="%p5") + COMMIT + WAIT.format(0),
        "wgmma operands differ"),
    "operand outside shared memory": ("add.s64 %rd21, %rd21, 800;" + WHOLE, "out of bounds shared"),
    "a generic address in the descriptor": ("or.b64 %rd20, %rd20, 0x8000;" + WHOLE, "malformed wgmma descriptor"),
    "generic write without a proxy fence": (
        "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0; bar.sync 0;" + WHOLE, "missing proxy fence"),
    "no barrier after a generic write": (
        "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0; fence.proxy.async;" + WHOLE, "shared memory race"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str) -> None:
    body, kind = FAULTS[name]
    report, _, _ = chain("bf16", body)
    assert kind in report.kinds(), report
    found = next(f for f in report.findings if f.kind == kind)
    assert found.line > 0 and (0 <= found.lane < 32)


def test_uninitialised_operand() -> None:
    tile_a, tile_b = tile(A, 1, 64, False), tile(B, 1, 64, False)
    body = descriptors(tile_a, tile_b) + FENCE + instruction(64) + COMMIT + WAIT.format(0)
    text = kernel(body, 32, 49152, setup="mov.u32 %r0, %tid.x; mul.wide.u32 %rd5, %r0, 16;")
    report, _ = run(text, np.zeros(16, np.uint8), np.ones((128, 32), np.float32), np.zeros((128, 4), np.uint32))
    assert report.kinds() == {"uninitialised read of shared memory"}


CLEAN = {
    "zeroed accumulators before the fence": "".join(f"mov.b32 %d{e}, 0f3F800000;" for e in range(32)) + WHOLE,
    "fence, proxy fence and barrier after a write": (
        "ld.shared.b32 %r8, [32768]; bar.sync 0; setp.eq.u32 %p5, %r0, 5; @%p5 st.shared.b32 [32768], %r8;"
        " fence.proxy.async; bar.sync 0;" + WHOLE),
    "reuse of a shared operand after the wait": WHOLE + "bar.sync 0; shl.b32 %r9, %r0, 2; st.shared.b32 [%r9], %r0;",
    "accumulators used between two rounds": (
        FENCE + instruction(64, scale="0") + COMMIT + WAIT.format(0) + "add.f32 %d0, %d0, 0f00000000;"
        "".join(f"mov.b32 %d{e}, 0f3F800000;" for e in range(32)) + WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_clean_kernels_are_silent(name: str) -> None:
    report, out, want = chain("bf16", CLEAN[name])
    assert report.ok, report
    assert np.array_equal(matrix_of(out, 64), want)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (instruction(64).replace("mma_async", "mma_async.sp"), "sparse"),
        (instruction(64).replace("m64n64", "m64n60"), "multiples of 8"),
        (instruction(64).replace(vector(32), vector(30)), "takes 32"),
        (instruction(64, "tf32", tail=", 1, 1, 0, 0"), "2 immediates follow"),
        (instruction(64, tail=", 2, 1, 0, 0"), "scales are 1 or -1"),
        (instruction(64).replace(".f32.bf16", ".f16.bf16"), "accumulates in .f32"),
        (instruction(64).replace(".bf16.bf16", ".bf16.f16"), "multiplies"),
        (instruction(40, "s8", td="s32"), "then of 16"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnknownInstruction, match=why):
        chain("bf16", FENCE + text + COMMIT + WAIT.format(0))


def test_plain_sm_90_has_no_wgmma() -> None:
    text = kernel(FENCE, 32, 49152).replace("sm_90a", "sm_90")
    with pytest.raises(PtxError, match="needs sm_90a"):
        run(text, np.zeros(49152, np.uint8), np.ones((128, 32), np.float32), np.zeros((128, 4), np.uint32))
