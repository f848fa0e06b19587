"""Contributions of a scatter, which data decides: the model takes each block's share on the average."""

from __future__ import annotations

from tcomp.autotune.gpu_model import BlockWork
from tcomp.autotune.gpu_scatter import with_contributions
from tcomp.dsl.ast import DType
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.autotune.support import gpt2


def test_twice_the_tokens_are_twice_the_contributions() -> None:
    op = backward_of("lookup", gpt2())
    assert op is not None

    def chain(tokens: int) -> float:
        dims = {"B": 1, "T": tokens, "V": 50304, "C": 768}
        (kernel,) = lower(bound(op, DType.BF16), gpt2(), dims, H100).kernels
        fill, scatter = kernel.phases
        assert with_contributions(BlockWork(), fill) == BlockWork()
        return with_contributions(BlockWork(), scatter).chain

    assert chain(2048) == 2 * chain(1024) > 0
