"""How many blocks are to share a multiprocessor of a B200 (`residency.py`): by columns, memory, registers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.codegen.nvptx.assembly.residency import computing_registers, resident_blocks, shared_wanted
from tcomp.ir.blocks import Blocks, Cluster, GridOrder, Producer, ThreadShape
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import machine_for_target
from tests.tcomp.nvptx.support import lowered
from tests.tcomp.nvptx.test_tensor_groups import DIMS, FULL

B200 = machine_for_target("sm_100a")
PLAIN = Blocks(ThreadShape(warps_y=4), producer=Producer(4, 24))
KB = 1024


def of(**changes: Any) -> Kernel:
    return Kernel("f", (), (), (), frozenset(), frozenset(), blocks=replace(PLAIN, **changes))


@pytest.mark.parametrize(
    ("changes", "shared", "columns", "blocks"),
    [
        ({}, 100 * KB, 256, 2),
        ({}, 10 * KB, 64, 2),  # (three would have 146 registers for a thread that computes)
        ({}, 100 * KB, 512, 1),
        ({}, 120 * KB, 256, 1),
        ({}, 100 * KB, 0, 1),  # no product by way of tensor memory
        ({"shape": ThreadShape(warps_y=8)}, 100 * KB, 256, 1),  # 112 registers
        ({"producer": None}, 100 * KB, 256, 1),
        ({"producer": Producer(4)}, 100 * KB, 256, 1),
        ({"order": GridOrder(persistent=True)}, 100 * KB, 256, 1),
        ({"cluster": Cluster("m", 2)}, 100 * KB, 256, 1),
    ],
)
def test_blocks_of_a_multiprocessor(changes: dict[str, Any], shared: int, columns: int, blocks: int) -> None:
    assert resident_blocks(of(**changes), B200, shared, columns) == blocks


def test_registers_of_a_thread_that_computes() -> None:
    """What the producer's four warps leave, of all registers or half of them; sides are warps that compute, too."""
    one, two, sides = computing_registers(of(), B200), computing_registers(of(), B200, 2), {"sides": 2}
    assert (one, two, computing_registers(of(**sides), B200)) == (0, 232, 240)
    assert computing_registers(of(producer=None), B200) == 0


def test_shared_memory_by_which_there_are_two() -> None:
    """Of one warpgroup beside a producer, with products whose results it waits for."""
    (phase,) = (kernel := lowered(FULL, DIMS, B200)).phases
    for blocks, two in (
        (PLAIN, True),
        (replace(PLAIN, producer=None), False),
        (of(shape=ThreadShape(1, 8)).gpu, False),
    ):
        wanted = shared_wanted(phase, replace(kernel, blocks=blocks), B200)
        assert bool(wanted) == two and shared_wanted((), replace(kernel, blocks=blocks), B200) == 0
        if two:
            assert [occupancy(B200, 24, 256, wanted + more, 256).blocks for more in (0, 1)] == [2, 1]
