"""Bytes that a kernel's phase moves from and to device memory, from tile IR: wave by wave, the parts of each operand
that the blocks running at the same time touch, each once as long as L2 keeps it, also where a block goes over its part
again. Waves follow the kernel's order of tiles (raster, clusters, persistent blocks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import cast

from tcomp.autotune.gpu_conditions import Moves
from tcomp.autotune.gpu_model import DRIFT, L2_SHARE, PERSISTENT_DRIFT, cached_traffic
from tcomp.codegen.llvm.integers import affine_form
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.grid import Turns
from tcomp.dsl.ast import Access, Expr, accesses_in, names_in
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import GridOrder
from tcomp.ir.multicast import cluster_of, shared_packs
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Scope, Statement, Unpack
from tcomp.machine.gpu import GpuMachine

LADDER_LOOP = 8192
"""bytes along the summed index (4096 values of bf16) of the products that the drift was chosen by"""
WAVES = 64
"""Waves looked at; of more, the mean of these stands for all."""


def phase_traffic(kernel: Kernel, phase: tuple[Statement, ...], machine: GpuMachine, resident: int) -> float:
    """Bytes between L2 and device memory. `resident` blocks run on an SM at a time."""
    nest = _grid(phase)
    grid = [(loop.variable, trips) for loop, trips in nest]
    touched = _touched(kernel, phase, {v for v, _ in grid})
    if not touched:
        return 0.0
    blocks = math.prod(t for _, t in grid)
    cluster = cluster_of(kernel, phase)
    sms = machine.clusters(cluster.blocks) * cluster.blocks if cluster is not None else machine.sms
    wave = max(1, sms * resident)
    waves = -(-blocks // wave)
    per_block = {n: b / math.prod(t for v, t in grid if v in axes) for n, (b, axes, _) in touched.items()}
    compulsory = sum(b for b, _, _ in touched.values())
    if compulsory <= machine.l2_bytes / 2:
        return float(compulsory)
    repeated = blocks * read_again(kernel, phase, min(wave, blocks), machine)
    if waves == 1 and blocks <= wave:
        return compulsory + repeated
    sampled = sorted({round(i * (waves - 1) / max(1, min(waves, WAVES) - 1)) for i in range(min(waves, WAVES))})
    total = 0.0
    places_of = _Places(kernel, phase, nest)
    drift = _drift(kernel, phase, {v for v, _ in grid})
    shared = _delivered(kernel, phase)
    for w in sampled:
        places = [places_of(b) for b in range(w * wave, min(blocks, (w + 1) * wave))]
        read = asked = written = 0.0
        for n, (_, axes, stored) in touched.items():
            different = per_block[n] * len({tuple(p[v] for v in sorted(axes)) for p in places})
            all_blocks = per_block[n] * len(places)
            if stored:
                written += min(different, all_blocks)
            else:
                read += min(different, all_blocks)
                asked += all_blocks / (places_of.size if n in shared else 1)
        total += cached_traffic(read, max(read, asked), machine, drift) + written
    return max(float(compulsory), total * waves / len(sampled)) + repeated


def phase_moves(kernel: Kernel, phase: tuple[Statement, ...]) -> Moves:
    """The parts of the operands that a phase reads, and those that it writes."""
    read: dict[str, set[Part]] = {}
    written: dict[str, set[Part]] = {}
    for leaf, _ in _leaves(phase, {}):
        for access, stores in _accesses_of(leaf, kernel):
            (written if stores else read).setdefault(access.tensor, set()).add(_part(access))
    return Moves(*(sum(_size(kernel, n, parts) for n, parts in found.items()) for found in (read, written)))


def read_again(kernel: Kernel, phase: tuple[Statement, ...], running: int, machine: GpuMachine) -> float:
    """Bytes that a block asks device memory for a second time: a later statement reads what an earlier one has read,
    and between the two the `running` blocks read more than L2 keeps."""
    last: dict[str, tuple[tuple[Loop, ...], float]] = {}
    live: dict[str, float] = {}
    again = 0.0
    for leaf, loops in _within_blocks(phase, ()):
        for name, size in _read_by(leaf, kernel).items():
            if name in last:
                before, was = last[name]
                shared = next((i for i, (a, b) in enumerate(zip(loops, before, strict=False)) if a is not b),
                              min(len(loops), len(before)))  # fmt: skip
                part = min(size * _turns(loops[shared:]), was * _turns(before[shared:]))
                live[name] = max(live.get(name, 0.0), part)
                again += part * _turns(loops[:shared])
            last[name] = loops, size
    held, room = sum(live.values()) * running, machine.l2_bytes * L2_SHARE
    return again * max(0.0, 1.0 - room / held) if held else 0.0


def _within_blocks(
    body: tuple[Statement, ...], loops: tuple[Loop, ...]
) -> Iterator[tuple[Compute | Pack, tuple[Loop, ...]]]:
    """What reads memory, with the loops around it inside of a block."""
    for s in body:
        if isinstance(s, Loop):
            yield from _within_blocks(s.body, loops if s.level == "grid" else (*loops, s))
        elif isinstance(s, Compute | Pack):
            yield s, loops


def _read_by(leaf: Compute | Pack, kernel: Kernel) -> dict[str, float]:
    """Operand -> bytes of it that the statement reads."""
    accesses = [leaf.source] if isinstance(leaf, Pack) else accesses_in(leaf.value)
    extents = {a.name: a.block for a in leaf.axes}
    found: dict[str, float] = {}
    operands = {o.name: o for o in kernel.operands}
    for a in accesses:
        if a.tensor in operands:
            walked = {n for s in a.subscripts for n in names_in(s)} & extents.keys()
            size = min(operands[a.tensor].elements, math.prod(extents[n] for n in walked))
            found[a.tensor] = max(found.get(a.tensor, 0.0), float(size * operands[a.tensor].dtype.bytes))
    return found


def _turns(loops: tuple[Loop, ...]) -> float:
    total = 1.0
    for loop in loops:
        with suppress(TcError):  # (as many as the block's place says: one is assumed)
            total *= math.ceil(float(evaluate_dim(loop.stop, {}) - evaluate_dim(loop.start, {})) / loop.step)
    return total


def _grid(phase: tuple[Statement, ...]) -> list[tuple[Loop, int]]:
    """The grid loops and their trip counts, outermost first."""
    found: list[tuple[Loop, int]] = []
    at = list(phase)
    while at and isinstance(at[0], Loop) and at[0].level == "grid":
        loop = at[0]
        try:
            extent = float(evaluate_dim(loop.stop, {}) - evaluate_dim(loop.start, {}))
        except TcError:
            extent = float(loop.step)
        found.append((loop, max(1, math.ceil(extent / loop.step))))
        at = list(loop.body)
    return found


def _drift(kernel: Kernel, phase: tuple[Statement, ...], grid: set[str]) -> float:
    """How far apart blocks are, in shares of their pipeline's loop: as far as the ladder's kernels in theirs of 4096
    values of bf16, for what parts blocks (starts, stores, waits) does not grow with the loop. Loops are as long as the
    rows of bytes that they walk, which matrix instructions of all types take in the same time."""
    share = PERSISTENT_DRIFT if kernel.gpu.order.persistent else DRIFT
    lengths = [n for n in (_length(s, kernel, grid) for s in phase) if n]
    return min(1.0, share * LADDER_LOOP / max(lengths)) if lengths else share


def _length(s: Statement, kernel: Kernel, grid: set[str]) -> float:
    """Bytes of a row that the longest pipeline below walks; 0 without one (or of a length that is not known)."""
    if not isinstance(s, Loop):
        return 0.0
    own = 0.0
    if s.level == "pipe":
        try:
            turns = float(evaluate_dim(s.stop, {}) - evaluate_dim(s.start, {})) / s.step
        except TcError:
            turns = 0.0
        own = turns * max((_row(p, kernel, grid) for p in s.body if isinstance(p, Pack)), default=0)
    return max([own, *(_length(b, kernel, grid) for b in s.body)])


def _row(p: Pack, kernel: Kernel, grid: set[str]) -> int:
    """Bytes of a staged tile along what its loop walks: the indices that do not follow the block."""
    summed = (a.block for a in p.axes if not names_in(a.start) & grid)
    return math.prod(summed) * kernel.buffer(p.buffer).dtype.bytes


def _delivered(kernel: Kernel, phase: tuple[Statement, ...]) -> set[str]:
    """Operands whose tiles a cluster fetches once for all its blocks."""
    buffers = kernel.buffers
    return {p.source.tensor for p in shared_packs(phase, cluster_of(kernel, phase), buffers).values()}


class _Places:
    """From a block's number (of a grid without persistent blocks) to its turn of each grid loop: the code generator's
    own arithmetic, on numbers."""

    def __init__(self, kernel: Kernel, phase: tuple[Statement, ...], nest: list[tuple[Loop, int]]) -> None:
        self.order: GridOrder = kernel.gpu.order
        cluster = cluster_of(kernel, phase)
        ranges = [range(trips) for _, trips in nest]
        along = 0
        if cluster is not None:
            along = next(i for i, (loop, _) in enumerate(nest) if loop.variable == cluster.variable)
            ranges[along] = range(-(-len(ranges[along]) // cluster.blocks) * cluster.blocks)
        self.size = cluster.blocks if cluster is not None else 1
        self.turns = Turns(tuple(loop for loop, _ in nest), tuple(ranges), self.size, along)

    def __call__(self, block: int) -> dict[str, int]:
        number, rank = divmod(block % self.turns.total, self.size)
        values = self.turns.values(NUMBERS, number, self.order, rank)
        return {loop.variable: int(v) for loop, v in zip(self.turns.loops, values, strict=True)}


class _Numbers:
    """Stands for the emitter where all is known."""

    def add(self, a: int, b: int) -> int:
        return a + b

    def mul(self, a: int, b: int) -> int:
        return a * b


NUMBERS: GpuEmitter = cast(GpuEmitter, _Numbers())


def _touched(kernel: Kernel, phase: tuple[Statement, ...], grid: set[str]) -> dict[str, tuple[float, set[str], bool]]:
    """Operand -> (bytes, grid variables that its part depends on, whether it is written). What is read before it is
    written, or added to, counts twice: it comes and goes. Of an operand whose parts are named by numbers
    (`QKV[0, ...]`) those parts count."""
    found: dict[str, tuple[float, set[str], bool]] = {}
    twice: set[str] = set()
    parts: dict[str, set[Part]] = {}
    for leaf, known in _leaves(phase, {}):
        ranges = dict(known)
        for axis in leaf.axes:
            ranges[axis.name] = _variables(axis.start, ranges) | _variables(axis.stop, ranges)
        for access, written in _accesses_of(leaf, kernel):
            name = access.tensor
            parts.setdefault(name, set()).add(_part(access))
            axes = {v for s in access.subscripts for v in _variables(s, ranges)} & grid
            again = isinstance(leaf, Unpack) and leaf.add and leaf.turns is None  # (what it is added to is read)
            again = again or (written and isinstance(leaf, Compute) and leaf.accumulate and leaf.distinct)
            _, old, was = found.get(name, (0.0, axes, False))
            if again or (written and not was and name in found):
                twice.add(name)
            found[name] = (0.0, old & axes, was or written)
    return {n: (_size(kernel, n, parts[n]) * (1 + (n in twice)), axes, was) for n, (_, axes, was) in found.items()}


Part = tuple[int | None, ...]
"""Of each subscript of an access the number that it is, None for one that is no number."""


def _part(access: Access) -> Part:
    numbers = (affine_form(s) for s in access.subscripts)
    return tuple(int(n.constant) if n is not None and not n.terms else None for n in numbers)


def _size(kernel: Kernel, name: str, parts: set[Part]) -> float:
    """Bytes of a buffer that accesses to those parts touch."""
    buffer = kernel.buffer(name)
    shares = 0.0
    for part in parts:
        shares += math.prod(1 / max(1, e) for n, e in zip(part, buffer.shape, strict=False) if n is not None)
    return buffer.bytes * min(1.0, shares)


def _accesses_of(leaf: Compute | Pack | Unpack, kernel: Kernel) -> Iterator[tuple[Access, bool]]:
    """Accesses to operands, and whether they write."""
    found: list[tuple[Access, bool]]
    if isinstance(leaf, Compute):
        found = [(a, False) for a in accesses_in(leaf.value)] + [(leaf.target, True)]
    elif isinstance(leaf, Pack):
        found = [(leaf.source, False)]
    else:
        found = [(leaf.target, True)]
    buffers = kernel.buffers
    for access, written in found:
        if access.tensor in buffers and buffers[access.tensor].scope in (Scope.OPERAND, Scope.TEAM):
            yield access, written


def _leaves(
    body: tuple[Statement, ...], known: Mapping[str, set[str]]
) -> Iterator[tuple[Compute | Pack | Unpack, dict[str, set[str]]]]:
    for s in body:
        if isinstance(s, Loop):
            reach = {s.variable} | _variables(s.start, known)
            yield from _leaves(s.body, {**known, s.variable: reach, f"{s.variable}.stop": reach})
        else:
            yield s, dict(known)


def _variables(e: Expr, known: Mapping[str, set[str]]) -> set[str]:
    """The loop variables that an expression's value follows from."""
    out: set[str] = set()
    for n in names_in(e):
        out |= known.get(n, {n})
    return out
