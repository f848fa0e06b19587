"""Law: a schedule of a product or of attention on a GPU keeps the oracle's result, or is refused with place and remedy.

Ops and schedules are random (`reference/random_products.py`, `random_attention.py`). PTX runs on the virtual GPU with
all checks on; bounds are those of the types that a value is rounded to on its way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.dsl.ast import NO_SPAN, DType, Module, Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.machine.gpu import GpuMachine, machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.runtime.vgpu import KernelFault, Options, PtxError
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference.random_attention import RandomAttention
from tests.reference.random_products import RandomProduct

MANY = pytest.mark.slow

UNITS = {
    "f32": 2.0**-16,
    "tf32": 2.0**-9,
    "sum": 2.0**-12,
    "bf16": 2.0**-8,
    "f16": 2.0**-11,
    "e4m3": 2.0**-4,
    "e5m2": 2.0**-3,
}
"""by which a value changes when it is rounded, or a sum as it grows: of many terms in f32, of 8-bit ones by wgmma"""


def inputs_of(op: Op, dims: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Normal values, integers from 0 to 3."""
    rng = np.random.default_rng(seed)
    found = {}
    for p in op.params:
        shape = operand_shape(p, dims)
        if p.dtype is DType.I32:
            found[p.name] = rng.integers(0, 4, shape).astype(np.int32)
        else:
            found[p.name] = values(stored(rng.standard_normal(shape).astype(np.float32), p.dtype), p.dtype)
    return found


def taken(c: RandomProduct | RandomAttention, machine: GpuMachine) -> tuple[str, Module, LoweredOp] | None:
    """The text and what it is lowered to, without the lines of its schedule that are refused, one after the other; None
    where something else is. Each refusal has a place and a remedy."""
    lines = c.text.splitlines(keepends=True)
    while True:
        text = "".join(lines)
        try:
            module = load_text(text, "f.tc")
            return text, module, lower(module.ops["f"], module, c.dims, machine)
        except TcError as e:
            assert e.span != NO_SPAN and e.hint, e
            at = e.span.line - 1
            if at >= len(lines) or "\nschedule" not in "".join(lines[:at]):
                return None
            del lines[at]


def holds(c: RandomProduct | RandomAttention, seed: int) -> bool:
    """Is the case taken, and right? False for one that is refused as it has to be."""
    machine = replace(machine_for_target(c.target), sms=c.multiprocessors)
    case = taken(c, machine)
    if case is None:
        return False
    text, module, lowered = case
    op = module.ops["f"]
    inputs = inputs_of(op, c.dims, seed)
    wanted = evaluate(op, module, inputs, c.dims)
    try:
        found = virtual_run.execute(op, lowered, inputs, machine, Options(order=seed % 3))
    except UserError as e:
        assert not isinstance(e, PtxError) and e.message.startswith("f.tc:") and e.hint, e
        return False
    except KernelFault as e:
        raise AssertionError(f"{text}\nat {c.dims}: {e}") from None
    largest = {n: max(1e-3, float(np.abs(right).max(initial=0.0))) for n, right in wanted.items()}
    for name, right in wanted.items():
        operand = op.operand(name)
        assert operand is not None
        unit = max(UNITS[c.real], UNITS[operand.dtype.value])
        bound = 4 * (unit * largest[name] + UNITS[c.rounded] * max(largest.values()))
        np.testing.assert_allclose(found[name], right, rtol=0, atol=bound, err_msg=f"{name} of\n{text}\nat {c.dims}")
    return True


@cache
def product(seed: int) -> bool:
    return holds(RandomProduct(seed), seed)


@pytest.mark.parametrize("seed", range(12))
def test_any_product(seed: int) -> None:
    product(seed)


@pytest.mark.parametrize("seed", [3, 7, 10, 11, *(pytest.param(s, marks=MANY) for s in (0, 5, 6, 8, 9, 12))])
def test_any_product_in_tiles_that_are_no_whole_instructions(seed: int) -> None:
    holds(RandomProduct(seed, cut=True), seed)


@pytest.mark.parametrize("seed", [5, 56, 6, *(pytest.param(s, marks=MANY) for s in range(8, 20))])
def test_any_product_whose_sum_is_in_tensor_memory(seed: int) -> None:
    holds(RandomProduct(seed, tensor_memory=True), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 118))
def test_many_products(seed: int) -> None:
    product(seed)


@pytest.mark.parametrize("seed", [pytest.param(s, marks=[] if s < 2 else MANY) for s in range(8)])
def test_any_attention(seed: int) -> None:
    holds(RandomAttention(seed), seed)


def test_most_schedules_are_taken() -> None:
    """What is refused tests little."""
    assert sum(product(s) for s in range(8)) >= 6
