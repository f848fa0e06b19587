"""Results in the place of an operand: a read that a condition leaves out touches no element of another block."""

from __future__ import annotations

import numpy as np

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.load import load_text
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu import Device
from tcomp.schedule.lower import lower

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
