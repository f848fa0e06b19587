"""Loads of register tiles go behind the product that stands after them (`gpu/late_loads.py`)."""

from __future__ import annotations

from dataclasses import replace

from tcomp.ir.tile import Compute, Loop, Pack, Statement
from tcomp.ir.walk import loops_in
from tcomp.schedule.gpu.late_loads import late_loads
from tests.tcomp.test_row_groups import weight_gradient


def test_a_load_of_registers_follows_the_product_it_stood_before() -> None:
    """But no load of what the product reads or adds to, and nothing in front of another statement."""
    kernel = weight_gradient()
    (pipe,) = [x for x in loops_in(kernel.phases[0]) if isinstance(x, Loop) and x.level == "pipe"]
    packs = [s for s in pipe.body if isinstance(s, Pack)]
    product, load, scaled, *_ = (s for s in pipe.body if isinstance(s, Compute))

    def order(*body: Statement) -> tuple[Statement, ...]:
        (phase,) = late_loads(kernel.buffers, [(replace(pipe, body=(*packs, *body)),)])
        (loop,) = phase
        assert isinstance(loop, Loop)
        return loop.body[len(packs) :]

    assert order(load, product, scaled) == (product, load, scaled)
    assert order(load, scaled, product) == (load, scaled, product)
    reads = replace(product, value=load.target)
    assert order(load, reads) == (load, reads)
    adds = replace(product, target=load.target, accumulate=True)
    assert order(load, adds) == (load, adds)
