"""LLVM's loop strength reduction: off for products, and only while they are emitted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tcomp.codegen.cpu.compile import kernel_assembly, kernel_ir, optimized, target_machine
from tcomp.codegen.llvm.strength import strength_reduction
from tcomp.ir.tile import Compute, Kernel
from tcomp.machine.cpu import CpuMachine
from tests.reference.tile_ir import at, op, operand
from tests.tcomp.cpu.support import MACHINES, axis, kernel

PRODUCT = Compute(
    at("Y", "m", "n"),
    op("*", at("X", "k", "m"), at("W", "k", "n")),
    (axis("m", 16, 2), axis("n", 33, 4), axis("k", 40)),
    frozenset("k"),
    "sum",
)
"""A counter times a row's length is an address, in two tensors."""
ROOMY = [m for m in MACHINES if "avx512" in m.name]


def of(c: Compute) -> Kernel:
    return kernel([operand("X", 40, 16), operand("W", 40, 33), operand("Y", 16, 33)], [c])


def emitted(k: Kernel, machine: CpuMachine, wanted: bool | None) -> str:
    """The kernel's assembly with it, without, or as LLVM does by itself."""
    target = target_machine(machine)
    module = optimized(kernel_ir(k, machine), target)
    if wanted is None:
        return str(target.emit_assembly(module))
    with strength_reduction(wanted):
        return str(target.emit_assembly(module))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: m.name)
def test_products_are_made_without_it_where_there_are_registers_enough(machine: CpuMachine) -> None:
    with_it, without = (emitted(of(PRODUCT), machine, wanted) for wanted in (True, False))
    assert with_it != without
    assert kernel_assembly(of(PRODUCT), machine) == (without if machine in ROOMY else with_it)


@pytest.mark.parametrize("machine", ROOMY, ids=lambda m: m.name)
def test_conditions_and_lone_sums_keep_it(machine: CpuMachine) -> None:
    lone = tuple(replace(a, unroll=1) for a in PRODUCT.axes)
    for c in (replace(PRODUCT, guard=op("<=", "k", "m")), replace(PRODUCT, axes=lone)):
        assert kernel_assembly(of(c), machine) == emitted(of(c), machine, True)


def test_what_is_emitted_elsewhere_has_it() -> None:
    kernel_assembly(of(PRODUCT), MACHINES[0])
    by_itself, with_it, without = (emitted(of(PRODUCT), MACHINES[-1], wanted) for wanted in (None, True, False))
    assert by_itself == with_it != without
