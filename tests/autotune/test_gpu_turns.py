"""Waiting for turns in the static model: what a chain of blocks adds to a launch, by hand and for attention."""

from __future__ import annotations

import numpy as np
import pytest
from published_attention import attention_text

from tcomp.autotune.gpu_turns import Visits, length, waiting
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower


def test_blocks_that_meet_at_every_tile_end_one_turn_after_the_other() -> None:
    alike = [Visits((0,), np.arange(10)) for _ in range(4)]
    assert length(alike, 4, None) == 11.0
    assert length(alike, 4, 1.0) == 14.0
    # On two slots the second pair starts as late as it would have to wait.
    assert length(alike, 2, None) == 22.0 and length(alike, 2, 1.0) == 23.0


def test_blocks_of_other_sums_or_that_come_later_anyway_do_not_wait() -> None:
    other = [Visits((n,), np.arange(10)) for n in range(4)]
    assert length(other, 4, 1.0) == length(other, 4, None)
    triangle = [Visits((0,), np.arange(n, 10)) for n in range(9, -1, -1)]
    assert length(triangle, 10, 1.0) == length(triangle, 10, None) == 11.0


@pytest.mark.parametrize("causal,least,most", [(False, 1.01, 1.04), (True, 1.0, 1.01)])
def test_backward_at_16k(causal: bool, least: float, most: float) -> None:
    """Full: the last of a head's 128 blocks is 127 turns late, once. Causal: a block first has tiles of its own."""
    module = load_text(attention_text(causal), "attention.tc")
    op = backward_of("attention", module)
    assert op is not None
    kernel = lower(bound(op, DType.BF16), module, {"B": 1, "T": 16384, "H": 16, "D": 128}, H100).kernels[-1]
    assert least <= max(waiting(kernel, phase, 132) for phase in kernel.phases) <= most
