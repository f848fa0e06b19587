"""Law: no legal GPU schedule changes a result beyond rounding, when its PTX runs on the virtual GPU with all checks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from tcomp.dsl.check import infer
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_item
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.reference.gpu_schedules import OPS, schedules
from tests.reference.op_cases import assert_close, library, random_inputs
from tests.test_ops_gpu import H100, execute


@pytest.mark.parametrize("name", OPS)
@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_legal_schedule_keeps_the_result(name: str, data: st.DataObject) -> None:
    module = library()
    op = module.ops[name]
    dims = {d: data.draw(st.integers(*r), label=d) for d, r in OPS[name].items()}
    extents = {i: int(evaluate_dim(e, dims)) for i, e in infer(op, module).ranges.items()}
    schedule = data.draw(schedules(op, extents))
    note(print_item(schedule))
    try:
        lowered = lower(op, module, dims, H100, schedule=schedule)
    except TcError as e:
        assume("each thread would hold" not in str(e))
        raise
    inputs = random_inputs(op, dims, seed=4)
    terms = max(dims.values())
    assert_close(execute(lowered, op, inputs), evaluate(op, module, inputs, dims), 4 * terms, "the oracle")
