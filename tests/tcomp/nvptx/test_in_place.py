"""Results in the place of an operand: a read that a condition leaves out touches no element of another block."""

from __future__ import annotations

import numpy as np

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.sync import Planner
from tcomp.dsl.load import load_text
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Compute, Spread
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu import Device
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import LANES, at, axis, kernel, op, operand

TEXT = """
op drop(A: f32[M, N], seed: i32[]) -> Y: f32[M, N]:
  Y[m, n] = select(random(seed, m * N + n) < 0.5, 0.0, A[m, n] / 0.5)
"""


def test_what_a_condition_leaves_out_is_no_race() -> None:
    module, shape = load_text(TEXT), (13, 1)
    (kernel,) = lower(module.ops["drop"], module, {"M": 13, "N": 1}, H100).kernels
    assert kernel.inplace == {("Y", "A")}
    device, code = Device(H100.sm), compile_kernel(kernel, H100)
    a = np.arange(1, 14, dtype=np.float32).reshape(shape)
    address = {"A": device.upload(a), "seed": device.upload(np.array(3, np.int32))}
    address["Y"] = address["A"]
    (launch,) = code.launches
    pointers = [address[o.name] for o in kernel.operands]
    device.load(code.ptx).launch(launch.symbol, launch.blocks, launch.threads, pointers, launch.shared_bytes).check()
    y = device.download(address["Y"], np.float32, a.size).reshape(shape)
    assert (y == np.where(y, 2 * a, 0.0)).all() and 0 < np.count_nonzero(y) < y.size


def test_a_result_that_may_be_in_either_operands_place_waits_for_both_to_be_read() -> None:
    total = Compute(at("s", "m"), at("X", "m", "c"), (axis("m", 8), axis("c", 128, LANES)), ("c",))
    spread = Spread(1, "x", 32, "x", 4, 32)
    result = Compute(
        at("Y", "m", "c"), op("+", at("X", "m", "c"), at("G", "m", "c")), (axis("m", 8), axis("c", 128, spread))
    )
    k = kernel([operand(n, 8, 128) for n in "XGY"] + [operand("s", 8)], [[total, result]], threads=ThreadShape(4))

    def barriers(*inplace: tuple[str, str]) -> set[tuple[int, ...]]:
        return Planner(k.phases[0], k.buffers, k.gpu.shape, inplace=inplace).plan(k.phases[0]).barriers

    over_x, over_g = ("Y", "X"), ("Y", "G")
    assert barriers(over_x) == {(0, 1)} and not barriers(over_g)
    assert barriers(over_x, over_g) == barriers(over_g, over_x) == {(0, 1)}
