"""Attention's CPU schedules: what is packed once per head, and how a sum over query heads is shared out among cores."""

from __future__ import annotations

import pytest

from tcomp.dsl.load import load
from tcomp.grad import backward_of
from tcomp.ir.print import print_kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower

AVX2 = CpuMachine("avx2", (), 8, 16, 32768, 512 << 10, 32 << 20, 2)


def test_values_are_packed_for_the_field_that_reads_them() -> None:
    """A monoid's field is a sum over indices of its own; a `stage` line for its operand packs along those."""
    module = load("models/ops/attention.tc")
    (kernel,) = lower(module.ops["attention"], module, {"B": 1, "T": 256, "H": 2, "D": 64}, AVX2).kernels
    lines = print_kernel(kernel).splitlines()
    (packed,) = (x.split()[1] for x in lines if "pack " in x and ", 2, h" in x)
    assert any(line.split()[0].startswith("o[") and packed in line and "+= sum k" in line for line in lines)


@pytest.mark.parametrize(("heads", "threads", "shared"), [(3, 2, True), (4, 2, False), (3, 1, False), (17, 2, False)])
def test_query_heads_are_shared_out_where_key_heads_are_not(heads: int, threads: int, shared: bool) -> None:
    module = load("models/ops/grouped_attention.tc")
    op = backward_of("grouped_attention", module)
    assert op is not None
    dims = {"B": 1, "T": 64, "G": heads, "R": 3, "D": 64}
    (kernel,) = lower(op, module, dims, AVX2, threads=threads).kernels
    assert any(t.name == "dK.partial" for t in kernel.tiles) is shared
    assert len(kernel.phases) == (3 if shared else 1)
