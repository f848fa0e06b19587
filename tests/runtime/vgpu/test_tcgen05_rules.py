"""The rules of tcgen05 and tensor memory, each broken once: waits, fences, allocation, lanes, descriptors, operands."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import Options, PtxError
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.targets import check_instructions
from tests.runtime.vgpu.tensor_kernels import (
    ADDRESS,
    AFTER,
    ALLOC,
    BEFORE,
    COMMIT,
    COPY,
    DEALLOC,
    FIRST,
    LOADED,
    PROXY,
    READ,
    SHARED,
    STORED,
    SYNC,
    WAITED,
    Product,
    kernel,
    load,
    operands,
    out,
    run,
    steps,
    store,
)

P = Product()
_, _, IMAGE, CODE = operands(P, 64)
WHOLE = steps(P) + READ
FILL = "".join(f"mov.b32 %d{e}, 0;\n" for e in range(64))
END = BEFORE + SYNC + DEALLOC.format(columns=256)
SETUP = ALLOC.format(columns=256) + COPY.format(chunks=SHARED // 16)
EARLY = "tensor memory before completion"
FENCE, WAIT, RACE, MISUSE = (
    "missing tcgen05.fence",
    "missing tcgen05.wait",
    "tensor memory race",
    "tensor memory misuse",
)
SWAPPED = "xor.b32 %r13, %r12, 0x200000;\n"
"""the address with the lanes of the neighbouring warp"""

FAULTS = {
    "a load before the commit's wait": (steps(P) + COMMIT + AFTER + load(64) + LOADED + out(64) + WAITED, EARLY),
    "a load with no fence after the wait": (WHOLE.replace(AFTER, ""), FENCE),
    "a register overwritten before wait::ld": (WHOLE.replace(LOADED, "mov.b32 %d1, 0;\n") + LOADED, WAIT),
    "a load before wait::st": (FILL + store(64) + load(64) + LOADED + STORED, WAIT),
    "a product before wait::st of its warp": (FILL + store(64) + SYNC + AFTER + steps(P) + COMMIT + WAITED + STORED,
                                              WAIT),
    "a product after another warp's store, no fence before": (
        FILL + store(64) + STORED + SYNC + AFTER + WHOLE, FENCE),
    "a product after another warp's store, no fence after": (
        FILL + store(64) + STORED + BEFORE + SYNC + WHOLE, FENCE),
    "a product after another warp's store, no barrier": (
        FILL + store(64) + STORED + BEFORE + AFTER + WHOLE, RACE),
    "a product over what another warp loads": (
        WHOLE.replace(LOADED, "") + BEFORE + SYNC + AFTER + steps(P) + LOADED, WAIT),
    "another shape in flight": (steps(P) + Product(n=32).text() + READ, EARLY),
    "the same product by many threads": (steps(P).replace("@%p0", "@%p1") + READ, RACE),
    "nothing written there": (load(64) + LOADED, "uninitialised read of tensor memory"),
    "a sum that starts from nothing": (P.text() + READ, "uninitialised read of tensor memory"),
    "outside of the allocation": (steps(P) + READ.replace("[%r12]", "[%r12+224]"), "out of bounds tensor"),
    "an accumulator outside": (steps(P).replace("[%r10]", "[%r10+200]"), "out of bounds tensor"),
    "the lanes of another warp": (FILL + SWAPPED + store(64, at="%r13"), "tensor memory of another warp"),
    "an accumulator at lane 32": (steps(P).replace("[%r10]", "[%r10+2097152]"), "malformed tcgen05 descriptor"),
    "A at other lanes than D": (
        FILL + "add.u32 %r16, %r12, 64; add.u32 %r17, %r10, 1048640;\n" + store(8, at="%r16") + STORED + BEFORE + SYNC
        + AFTER + FIRST + Product(m=64).text("[%r17]") + COMMIT + WAITED, "malformed tcgen05 descriptor"),
    "a swizzle that there is not": ("or.b64 %rd21, %rd21, 0x2000000000000000;\n" + WHOLE,
                                    "malformed tcgen05 descriptor"),
    "the constant of the descriptor": ("and.b64 %rd20, %rd20, 0xffffbfffffffffff;\n" + WHOLE,
                                       "malformed tcgen05 descriptor"),
    "an N that there is not": (FIRST + Product(n=0).text() + COMMIT + WAITED, "malformed tcgen05 descriptor"),
    "an N that bytes across k have not": (
        FIRST + Product(n=24, a="e4m3", across=(False, True)).text() + COMMIT + WAITED, "malformed tcgen05 descriptor"),
    "f16 sums of bf16": (FIRST + Product(d="f16").text() + COMMIT + WAITED, "malformed tcgen05 descriptor"),
    "an operand outside shared memory": ("add.s64 %rd21, %rd21, 2000;\n" + WHOLE, "out of bounds shared"),
    "an operand written in flight": (
        steps(P) + COMMIT + SYNC + "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0;\n" + WAITED,
        "write before completion"),
    "given back in flight": (steps(P) + COMMIT + SYNC + END + WAITED, EARLY),
    "a commit that nobody waits for": (steps(P) + COMMIT + "bar.sync 0;", "copy in flight at exit"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str) -> None:
    body, kind = FAULTS[fault]
    report, _ = run(kernel(CODE + body, end="nanosleep.u32 1;" if END in body else ""), IMAGE, 64)
    assert kind in report.kinds(), str(report)


def test_what_is_in_flight_is_not_there() -> None:
    _, found = run(kernel(CODE + steps(P) + COMMIT + AFTER + load(64) + LOADED + out(64) + WAITED), IMAGE, 64)
    assert np.isnan(found).all()


SETUPS = {
    "no proxy fence by the writers": (SETUP + SYNC + ADDRESS, END, "missing proxy fence"),
    "not given back": (SETUP + PROXY + SYNC + ADDRESS, SYNC, MISUSE),
    "given back twice": (SETUP + PROXY + SYNC + ADDRESS, END + DEALLOC.format(columns=256), MISUSE),
    "not as many given back": (SETUP + PROXY + SYNC + ADDRESS, END.replace("256", "128"), MISUSE),
    "no power of two": (SETUP.replace("256", "96") + PROXY + SYNC + ADDRESS, END, MISUSE),
    "after the permit": (SETUP + ALLOC.split("\n")[1].format(columns=64) + "\n" + PROXY + SYNC + ADDRESS, END, MISUSE),
    "more than before": (ALLOC.split("\n")[1].format(columns=64) + SETUP + PROXY + SYNC + ADDRESS, END, MISUSE),
    "more than there is": (3 * (ALLOC.split("\n")[1].format(columns=256) + "\n") + SETUP, END, "deadlock"),
    "no barrier before the address is read": (SETUP + PROXY + ADDRESS + SYNC, END, "shared memory race"),
}


@pytest.mark.parametrize("fault", SETUPS)
def test_faults_of_setting_up(fault: str) -> None:
    setup, end, kind = SETUPS[fault]
    report, _ = run(kernel(CODE + WHOLE, setup=setup, end=end), IMAGE, 64)
    assert kind in report.kinds(), str(report)


def test_correct_orders_have_no_finding() -> None:
    """An accumulator that was loaded is used again; one that was stored is added to; any order of warps and blocks."""
    a, b, image, code = operands(P, 64)
    again = BEFORE + SYNC + AFTER + code + steps(P) + READ.replace(", 0; @!%p5 bra WAIT0", ", 1; @!%p5 bra WAIT1")
    again = again.replace("WAIT0", "WAIT1")
    for order in (0, 1, 2):
        report, found = run(kernel(code + WHOLE + again), image, 64, grid=2, options=Options(order=order))
        assert report.ok, str(report)
        assert np.array_equal(found, a @ b.T)
    ones = "".join(f"mov.b32 %d{e}, 0x3f800000;\n" for e in range(64)) + store(64) + STORED + BEFORE + SYNC + AFTER
    report, found = run(kernel(code + ones + steps(P).removeprefix(FIRST) + READ), image, 64)
    assert report.ok, str(report)
    assert np.array_equal(found, a @ b.T + 1)


def test_who_reads_a_register_waits_for_its_load() -> None:
    a, b, image, code = operands(P, 64)
    early = WHOLE.replace(LOADED, "") + "mov.b32 %d1, 0;\n" + LOADED
    report, found = run(kernel(code + early), image, 64)
    assert report.ok, str(report)
    assert np.array_equal(found, a @ b.T)


def test_a_relaxed_wait_is_enough_for_the_fence() -> None:
    report, _ = run(kernel(CODE + WHOLE.replace("try_wait.parity", "try_wait.parity.relaxed.cta")), IMAGE, 64)
    assert report.ok, str(report)


def test_targets() -> None:
    for target in ("sm_100", "sm_90"):
        with pytest.raises(PtxError, match="needs sm_100a"):
            run(kernel(CODE + WHOLE).replace("sm_100a", target), IMAGE, 64)
    mma = [Instr("tcgen05.mma.cta_group::1.kind::f8f6f4", (), 1)]
    for target in ("sm_103a", "sm_110a"):
        check_instructions(mma, target, "9.0")
    for target in ("sm_90a", "sm_103", "sm_120a"):
        with pytest.raises(PtxError, match="needs sm_100a"):
            check_instructions(mma, target, "9.0")
    report, _ = run(kernel(CODE + WHOLE).replace("sm_100a", "sm_100f").replace("8.6", "9.0"), IMAGE, 64)
    assert report.ok
    check_instructions([Instr("setmaxnreg.dec.sync.aligned.u32", (), 1)], "sm_100a", "8.6")
