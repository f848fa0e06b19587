"""8-bit linear layers on the virtual GPU, all of its checks on: bit for bit what the equations say."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.load import library, load
from tcomp.dsl.storage import bound
from tcomp.oracle import evaluate
from tcomp.runtime.verify import distance, random_inputs
from tests.test_ops_gpu import run

DIMS = {"M": 67, "N": 70, "K": 131, "H": 16}


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["", ".backward"])
@pytest.mark.parametrize("name", ["linear_gelu_fp8", "linear_residual_fp8", "linear_gelu_fp8_block"])
def test_compiled_code_is_the_oracle(name: str, backward: str) -> None:
    """Nearly every element the same; a value beside a tie may round the other way."""
    blocks = name.endswith("_block")
    module = load(library() / "ops" / ("fp8_block.tc" if blocks else "fp8.tc"))
    op = bound(module.ops[name + backward], DType.BF16)
    dims = {n: x for n, x in DIMS.items() if n != "H" or not blocks}
    inputs = random_inputs(op, dims, np.random.default_rng(0), False)
    got, wanted = run(op, module, dims, inputs), evaluate(op, module, inputs, dims)
    errors = {n: distance(got[n], value) for n, value in wanted.items()}
    assert max(errors.values()) < 2.0**-7, errors
