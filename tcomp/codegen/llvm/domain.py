"""The iteration domain of one Compute while its code is written: where each axis stands in each frame.

A `Point` names one register of the tile: the unroll position of every axis. Its coordinate along an axis is
start + base + position * lanes (+ lane), where `base` is the register tile's place in the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.integers import Affine, Facts, Known, affine_form, extent
from tcomp.codegen.llvm.types import IrValue, i32_lanes
from tcomp.ir.tile import Axis, Buffer

Point = Mapping[str, int]
Coordinates = tuple[tuple[str, int], ...]


@dataclass
class Scope:
    """What surrounds a statement: buffers with their base addresses, loop variables, known facts, the CPU."""

    buffers: dict[str, Buffer]
    roots: dict[str, IrValue]
    variables: dict[str, IrValue]
    facts: Facts
    fma: bool
    registers: int
    lanes_f32: int
    features: frozenset[str]


@dataclass
class AxisState:
    """One axis in the current loop nest: the tile's base counts from the axis's start.

    `multiple` divides base (0: base is 0). `masks[u]` are the valid lanes of register u, None for all.
    `lanes` is 1 for an axis walked by scalars. `interleaved`: registers 2 j and 2 j + 1 hold the even and the odd
    elements of the 2 * lanes that they cover (interleave.py).
    """

    level: int
    base: Int
    unroll: int
    lanes: int
    multiple: int
    masks: tuple[IrValue | None, ...]
    interleaved: bool = False

    def divisible(self, n: int) -> bool:
        return self.multiple % n == 0


@dataclass
class Domain:
    """Axes by name; `forms[a]` is axis a in affine symbols: its start plus the local counter "a'"."""

    emitter: Emitter
    scope: Scope
    level: int
    """the frame of the whole Compute; nothing that reads memory is emitted outside it"""
    vector: str | None
    lanes: int
    axes: dict[str, Axis] = field(default_factory=dict)
    states: dict[str, AxisState] = field(default_factory=dict)
    forms: dict[str, Affine] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    starts: dict[str, IrValue] = field(default_factory=dict)
    """start value of every axis, by the axis's name"""

    def declare(self, axis: Axis, start: IrValue) -> None:
        """Make the axis's forms and facts known; `start` is its start's value."""
        around = self.scope.facts
        if not self.facts.symbols:
            self.facts.symbols.update(around.symbols)
        self.axes[axis.name] = axis
        self.starts[axis.name] = start
        form = affine_form(axis.start)
        if form is None:
            symbol = f"{axis.name}@start"
            form = Affine(((symbol, 1),))
            self.facts.symbols[symbol] = around.of(axis.start)
        local = f"{axis.name}'"
        self.forms[axis.name] = form + Affine(((local, 1),))
        length = extent(axis, around)
        self.facts.symbols[local] = Known(0, max(0, (axis.block if length.hi is None else length.hi) - 1))
        self.facts.symbols[axis.name] = around.loop(axis.start, axis.stop, 1)

    def level_of(self, deps: frozenset[str]) -> int:
        """The frame in which something that varies with these axes is computed."""
        return max((self.states[a].level for a in deps), default=self.level)

    def coordinates(self, deps: frozenset[str], point: Point) -> Coordinates:
        return tuple((a, point[a]) for a in sorted(deps))

    def symbol(self, name: str) -> IrValue:
        """The value of an affine symbol that is no axis counter."""
        if name.endswith("@start"):
            return self.starts[name.removesuffix("@start")]
        return self.scope.variables[name]

    def mask(self, point: Point) -> IrValue | None:
        """The lanes of this register that lie inside the domain; None when all do."""
        if self.vector is None:
            return None
        return self.states[self.vector].masks[point[self.vector]]

    @property
    def interleaved(self) -> bool:
        """Whether registers along the vector axis come in pairs of even and odd elements."""
        return self.vector is not None and self.states[self.vector].interleaved


def lane_numbers(lanes: int, step: int = 1) -> ir.Constant:
    """<0, step, 2 * step, ...> of i32."""
    return i32_lanes(*(i * step for i in range(lanes)))
