"""What warpgroups do with their sums at the end of a tile: the code from its last matrix product to the next one.

All warpgroups of a block come to it together, so the matrix unit is idle meanwhile unless another block on the SM has
work for it; or a turn of their loop one after the other, where barriers keep them apart: then one multiplies while
another begins, and again when that one is through. The ways are replayed like loops (`gpu_replay`): registers, units,
and the rate at which results leave.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

from tcomp.autotune.gpu_model import COPY_LATENCY, ISSUE_RATE
from tcomp.autotune.gpu_replay import Step, Warp, run, step_of
from tcomp.autotune.opcodes import MATRIX, width
from tcomp.autotune.sass import Function, Instruction
from tcomp.machine.gpu import GpuMachine

STORES = {"STG": 9.0, "RED": 9.0, "REDG": 9.0, "STS": 3.5, "STSM": 8.0}
"""Cycles of the SM for one warp's store (ladder): a profile has 4572 of the 512 stores of a 128 x 128 tile from
registers; the others bring the published kernels with stores through shared memory to their speed."""
BULK_STORE = 400.0
"""Cycles until a bulk store has read its panel from shared memory, which is awaited before the next takes its place
(measured: stall samples of two products have 260 and 470)."""
LINES = 8
"""Lines of L1 that a load touches whose lanes lie as in the sums of a matrix instruction: it takes one cycle each."""
RESULTS = ("STG", "UTMASTG", "UTMAREDG")
"""Instructions by which results leave a block."""
WARPS = 4
"""of a warpgroup, one on each partition of the SM; one of them is replayed"""


@dataclass(frozen=True)
class Epilogue:
    """Of all tiles of a block: cycles that nothing is multiplied in; of the warp that has the most, the rounds of loads
    and the shuffles that are among them."""

    cycles: float = 0.0
    loads: int = 0
    shuffles: int = 0


Piece = tuple[int, int, int]
"""A block's number and its instructions from one place up to another."""


LOADS_OF_SUMS = "LDTM"
"""tcgen05.ld: sums come from tensor memory"""
LATER: Piece = (-1, 0, 0)
"""stands for the time by which a warpgroup starts after the one before"""


def epilogue(
    function: Function,
    ways: Sequence[Sequence[int]],
    through_shared: bool,
    machine: GpuMachine,
    turn: float = 0.0,
    sides: int = 1,
    products: float = 0.0,
) -> Epilogue:
    """That of a block whose warpgroups go these ways. `through_shared`: stores to shared memory are such work too, as
    where the loop itself has none. `turn`: cycles that the matrix unit has work for in a warpgroup's turn of the loop;
    counts where they are a turn apart. Of a block with `sides` one ends its tile beside the other's products;
    `products`: cycles that those of all the block's tiles take."""
    turn = turn if staggered(function, ways) else 0.0
    stores = (*RESULTS, "STS", "STSM") if through_shared else RESULTS
    every = [parts(function, way, stores) for way in ways]
    if sides > 1:
        return _beside(function, every, machine, products)
    known: dict[tuple[tuple[Piece, ...], ...], float] = {}
    total, loads, shuffles = 0.0, 0, 0
    for together in zip_longest(*every, fillvalue=()):
        if together not in known:
            known[together] = _cycles(function, together, machine, turn)
        total += known[together]
        loads += max(_count(function, part, "LDG", rounds=True) for part in together)
        shuffles += max(_count(function, part, "SHFL") for part in together)
    return Epilogue(total, loads, shuffles)


def behind_products(
    function: Function, ways: Sequence[Sequence[int]], machine: GpuMachine, products: float
) -> Epilogue:
    """That of warpgroups that load their sums from tensor memory, while another thread multiplies for the next tile:
    `products` cycles for all of the block's tiles. What of a tile's end takes longer than the products beside it, and
    the last, are left over."""
    every = [loaded(function, way) for way in ways]
    tiles = list(zip_longest(*every, fillvalue=()))
    if not tiles:
        return Epilogue()
    each = {together: _cycles(function, together, machine, 0.0) for together in set(tiles)}
    left = sum(max(0.0, each[t] - products / len(tiles)) for t in tiles[:-1])
    return Epilogue(
        left + each[tiles[-1]],
        sum(max(_count(function, part, "LDG", rounds=True) for part in t) for t in tiles),
        sum(max(_count(function, part, "SHFL") for part in t) for t in tiles),
    )


def loaded(function: Function, way: Sequence[int]) -> list[tuple[Piece, ...]]:
    """The parts of a way from a tile's first load of sums from tensor memory to the next tile's, or to the end. (Its
    further columns are loaded by code of their own.)"""
    first = [next((n for n, i in enumerate(b.instructions) if i.name == LOADS_OF_SUMS), None) for b in function.blocks]
    size = [len(b.instructions) for b in function.blocks]
    begins = next((b for b in way if first[b] is not None), None)
    places = [n for n, b in enumerate(way) if b == begins]
    found = []
    for a, b in zip(places, [*places[1:], None], strict=False):
        pieces: list[Piece] = [(way[a], first[way[a]] or 0, size[way[a]])]
        pieces += [(n, 0, size[n]) for n in way[a + 1 : b]]
        if b is not None:
            pieces.append((way[b], 0, first[way[b]] or 0))
        found.append(tuple(p for p in pieces if p[1] < p[2]))
    return found


def _beside(
    function: Function, every: Sequence[Sequence[tuple[Piece, ...]]], machine: GpuMachine, products: float
) -> Epilogue:
    """Ends of tiles beside the products of the other side's, which take `products` cycles for all tiles. A side
    multiplies and ends a tile, the other has its turn meanwhile: both together take as long as the products of both, or
    as products and end of one where that is more; instructions beside products go more slowly. The first products and
    the last end have nothing beside them."""
    tiles = [part for side in every for part in side]
    alone = {part: _cycles(function, (part,), machine, 0.0) for part in set(tiles)}
    each = products / max(1, len(tiles))
    ends = sum(alone[part] for part in tiles)
    taken = max(products + max(alone.values(), default=0.0), each + (products + ends / ISSUE_RATE) / 2)
    return Epilogue(
        taken - products if tiles else 0.0,
        max((sum(_count(function, part, "LDG", rounds=True) for part in side) for side in every), default=0),
        max((sum(_count(function, part, "SHFL") for part in side) for side in every), default=0),
    )


def parts(function: Function, way: Sequence[int], stores: Sequence[str]) -> list[tuple[Piece, ...]]:
    """What lies between matrix instructions of a way (or behind the last) and stores: the rest of the block with the
    one before, whole blocks, and the next one's block up to it."""
    inside = [[n for n, i in enumerate(b.instructions) if i.name in MATRIX] for b in function.blocks]
    size = [len(b.instructions) for b in function.blocks]
    places = [n for n, b in enumerate(way) if inside[b]]
    found = []
    for a, b in zip(places, [*places[1:], None], strict=True):
        pieces: list[Piece] = [(way[a], inside[way[a]][-1] + 1, size[way[a]])]
        pieces += [(n, 0, size[n]) for n in way[a + 1 : b]]
        if b is not None:
            pieces.append((way[b], 0, inside[way[b]][0]))
        if any(i.name in stores for p in pieces for i in _instructions(function, p)):
            found.append(tuple(p for p in pieces if p[1] < p[2]))
    return found


def _instructions(function: Function, piece: Piece) -> Sequence[Instruction]:
    number, first, end = piece
    return function.blocks[number].instructions[first:end]


def staggered(function: Function, ways: Sequence[Sequence[int]]) -> bool:
    """Do warpgroups pass turns on to each other?"""
    blocks = set[int]().union(*ways)
    return any(i.name == "BAR" and "ARV" in i.opcode for b in blocks for i in function.blocks[b].instructions)


def _cycles(function: Function, parts: Sequence[tuple[Piece, ...]], machine: GpuMachine, apart: float) -> float:
    """Cycles that nothing is multiplied in until the last of the warpgroups is through its part. They start `apart`
    cycles one after the other, each of which multiplies before it starts, and for as long again when it is through:
    further ahead than that it is not counted on to come."""
    steps: dict[Hashable, list[Step]] = {
        p: [step_at_end(i, machine) for i in _instructions(function, p)] for p in set().union(*parts)
    }
    steps[LATER] = [Step("issue", 1.0, 0.0, (), (), pause=apart)]
    warps = [Warp((LATER,) * (n if apart else 0) + part) for n, part in enumerate(parts)]
    run(warps, steps, None, len(warps))
    ends = sorted(w.at for w in warps)
    idle = max(0.0, ends[0] - apart * (len(ends) - 1))
    return idle + sum(max(0.0, b - a - apart) for a, b in pairwise(ends))


def step_at_end(i: Instruction, machine: GpuMachine) -> Step:
    """The step of an instruction outside of a loop: what it loads comes from device memory as often as from L2."""
    step = step_of(i, machine)
    if i.name in STORES:
        return replace(step, unit="store", busy=WARPS * STORES[i.name])
    if i.name == "UTMASTG":
        return replace(step, pause=BULK_STORE)
    if i.name == "LDG":
        lines = LINES if width(i.opcode) <= 4 else 4
        return replace(step, unit="lines", busy=float(WARPS * lines), latency=COPY_LATENCY, queues=True)
    return step


def _count(function: Function, part: Sequence[Piece], name: str, rounds: bool = False) -> int:
    """Instructions of that name; `rounds`: pieces of code that have some, whose accesses are under way together."""
    found = [sum(i.name == name for i in _instructions(function, p)) for p in part]
    return sum(map(bool, found)) if rounds else sum(found)
