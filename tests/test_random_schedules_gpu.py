"""Law: no legal GPU schedule changes a result beyond rounding, when its PTX runs on the virtual GPU with all checks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tcomp.oracle import evaluate
from tests.reference.gpu_schedules import OPS, scheduled
from tests.reference.op_cases import assert_close, library, random_inputs
from tests.test_ops_gpu import execute


@pytest.mark.parametrize("name", OPS)
@settings(deadline=None, max_examples=2, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_legal_schedule_keeps_the_result(name: str, data: st.DataObject) -> None:
    module = library()
    op, dims, lowered = scheduled(data, name, module)
    inputs = random_inputs(op, dims, seed=4)
    terms = max(dims.values())
    assert_close(execute(lowered, op, inputs), evaluate(op, module, inputs, dims), 4 * terms, "the oracle")
