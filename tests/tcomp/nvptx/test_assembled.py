"""The generated PTX assembled for every target: no spills, no stack, and the lowest PTX version that will do."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Compute, Kernel, Spread
from tcomp.machine.targets import TARGETS
from tests.tcomp.nvptx.gemm import product
from tests.tcomp.nvptx.support import at, axis, fn, kernel, lanes, launch, machine, op, operand

WARPS = Spread(4, "x", 32, "x", 4, 128)


def rows() -> Kernel:
    body = Compute(
        at("s", "m"), fn("exp", at("X", "m", "c")), (axis("m", 5), axis("c", 700, WARPS)), frozenset({"c"}), "sum"
    )
    operands = [operand("X", 5, 700, dtype=DType.BF16), operand("s", 5, dtype=DType.BF16)]
    return kernel(operands, [[body]], threads=ThreadShape(4))


def functions() -> Kernel:
    x = at("X", "i")
    value = x
    for name in ("exp", "log", "tanh", "sin", "sqrt", "rsqrt", "floor"):
        value = op("+", value, fn(name, x))
    value = op("+", value, op("+", op("**", x, x), fn("f16", op("/", x, fn("random", 5, "i")))))
    return kernel([operand("X", 77), operand("Y", 77)], [[Compute(at("Y", "i"), value, (axis("i", 77, lanes()),))]])


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_takes_it(target: str) -> None:
    kernels = [product(129, 128, 40), product(128, 128, 48, dtype=DType.BF16, transposed=False), rows(), functions()]
    for k in kernels:
        gpu = compile_kernel(k, machine(target))
        assert gpu.ptx.count(".version {}.{}".format(*TARGETS[target].version)) == 1
        assembled = assemble(gpu.ptx, target)
        assert [r.symbol for r in assembled.resources if r.entry] == [s.symbol for s in gpu.launches]
        for r in assembled.resources:
            assert r.spill_store_bytes == r.spill_load_bytes == r.stack_bytes == 0, r


def test_a_product_keeps_its_tile_in_few_registers() -> None:
    """64 accumulators and the operands of one step: two blocks of 256 threads to a multiprocessor."""
    (found,) = assemble(
        compile_kernel(product(256, 256, 64, transposed=False), machine("sm_90a")).ptx, "sm_90a"
    ).resources
    assert found.registers <= 128


@pytest.mark.parametrize("dtype", [DType.E4M3, DType.E5M2])
def test_fp8_storage(dtype: DType) -> None:
    """What is stored and read back is rounded to the format: small whole numbers are exact."""
    n = 70
    body = [
        Compute(at("Z", "i"), op("*", at("X", "i"), 2.0), (axis("i", n, lanes(4)),)),
        Compute(at("Y", "i"), op("+", at("Z", "i"), fn(dtype.value, 1.03)), (axis("i", n, lanes(4)),)),
    ]
    k = kernel([operand("X", n), operand("Z", n, dtype=dtype), operand("Y", n)], [body])
    for target in ("sm_89", "sm_90a"):
        assemble(compile_kernel(k, machine(target)).ptx, target)
    x = np.arange(n, dtype=np.float32) % 5 - 2
    out, _ = launch(k, compile_kernel(k, machine("sm_90a")), {"X": x})
    np.testing.assert_array_equal(out["Y"], 2 * x + 1)
