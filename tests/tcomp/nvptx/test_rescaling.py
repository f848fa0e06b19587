"""Running sums of flash attention are multiplied by their factors only in warps that have one other than 1
(`products/rescaling.py`): the same bits, and no question in short loops."""

from __future__ import annotations

import numpy as np
import pytest
from published_attention import attention_text

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.products import rescaling
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference.op_cases import stored_inputs
from tests.test_ops_gpu import execute

VOTE = "vote.sync.ballot"


def forward(tokens: int, causal: bool = True) -> LoweredOp:
    module = load_text(attention_text(causal), "ops/attention.tc")
    dims = {"B": 1, "T": tokens, "H": 1, "D": 64}
    return lower(bound(module.ops["attention"], DType.BF16), module, dims, H100)


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_bits_whether_it_is_asked_or_not(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_text(attention_text(causal), "ops/attention.tc")
    tokens = 324 if causal else 250  # turns of a block: three, two
    op, low = bound(module.ops["attention"], DType.BF16), forward(tokens, causal)
    inputs = stored_inputs(op, module, {"B": 1, "T": tokens, "H": 1, "D": 64})
    inputs["QKV"][:, :64] *= 4  # (most maxima are in the first turn)
    found = []
    for turns in (1, 1 << 20):
        monkeypatch.setattr(rescaling, "TURNS", turns)
        code = compile_kernel(low.kernels[0], H100)
        assert (VOTE in code.ptx) == (turns == 1)
        found.append(execute(low, op, inputs, H100, conflicts=0, codes={code.name: code}))
    for name, first in found[0].items():
        assert np.array_equal(first, found[1][name]), name


@pytest.mark.parametrize("tokens,asked", [(1024, False), (16384, True)])
def test_only_in_long_loops_and_without_a_finding(tokens: int, asked: bool) -> None:
    (kernel,) = forward(tokens).kernels
    ptx = compile_kernel(kernel, H100).ptx
    assert (VOTE in ptx) == asked
    found = assemble(ptx, "sm_90a")
    assert not found.findings and not any(r.spill_store_bytes for r in found.resources)
