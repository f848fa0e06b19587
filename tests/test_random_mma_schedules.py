"""Law: no legal tensor-core schedule changes a product beyond rounding: its PTX on the virtual GPU with all checks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, strategies as st

from tcomp.autotune.virtual_run import codes_of
from tcomp.dsl.ast import DType
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.format import print_item
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.schedule.lower import lower
from tests.reference.mma_schedules import OPS, TEXT, schedules
from tests.test_ops_gpu import execute
from tests.turns import examples

MODULE = load_text(TEXT)


def keeps_the_result(name: str, data: st.DataObject) -> None:
    storage = data.draw(st.sampled_from([DType.BF16, DType.F16]), label="storage")
    op = bound(MODULE.ops[name], storage)
    drawn = data.draw(schedules(name, storage))
    note(f"{print_item(drawn.schedule)}\nat {drawn.dims}, {storage}")
    machine = machine_for_target(drawn.target)
    lowered = lower(op, MODULE, drawn.dims, machine, schedule=drawn.schedule)
    codes = codes_of(lowered, machine)
    assert re.search(r"\b(wgmma\.mma_async|mma)\.sync", codes[lowered.kernels[-1].name].ptx)
    rng = np.random.default_rng(1)
    inputs = {}
    for p in op.params:
        x = rng.standard_normal(operand_shape(p, drawn.dims)).astype(np.float32)
        inputs[p.name] = values(stored(x, p.dtype), p.dtype)
    found, wanted = execute(lowered, op, inputs, machine, codes=codes), evaluate(op, MODULE, inputs, drawn.dims)
    # Results are rounded once; wgmma keeps 14 bits of a sum of 8-bit products, others those of f32.
    ulp = 2.0**-8 if op.outputs[0].dtype is DType.BF16 else 2.0**-11
    ulp = 2.0**-12 if name == "narrow" else ulp
    for o in op.outputs:
        right = wanted[o.name]
        np.testing.assert_allclose(found[o.name], right, rtol=2 * ulp, atol=2 * ulp * np.abs(right).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
@examples(9, 2, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_tiling_keeps_the_result(name: str, data: st.DataObject) -> None:
    keeps_the_result(name, data)
